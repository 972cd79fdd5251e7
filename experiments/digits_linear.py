"""The digits by DDPM: linear schedule, fixed variance, L_simple. The laptop's twin of linear.py.

Command:   python main.py --workdir runs/digits_linear --config experiments/digits_linear.py
"""

from diffusion_jax.config import Config
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.diffusion.schedule = "linear"
    config.diffusion.prediction = "eps"
    return config
