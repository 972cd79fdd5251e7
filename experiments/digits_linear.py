"""The digits by DDPM: linear schedule, fixed variance, L_simple. The laptop's twin of linear.py.

Command:   python main.py --workdir runs/digits_linear --config experiments/digits_linear.py
Hardware:  a laptop's CPU; about two minutes on two cores
Result:    see docs/results.md: 5.01 bits/dim at T = 200 after 500 steps
"""

from diffusion_jax.runs.config import Config, Diffusion
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.conditioning.label.dropout = 0.0
    config.diffusion = Diffusion(schedule="linear", prediction="eps")
    return config
