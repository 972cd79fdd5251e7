"""The digits by Improved DDPM: cosine schedule, learned variance, L_hybrid. The laptop's twin of
cosine.py.

Command:   python main.py --workdir runs/digits_cosine --config experiments/digits_cosine.py
Hardware:  a laptop's CPU; about two minutes on two cores
Result:    see docs/results.md: 4.41 bits/dim at T = 200 after 500 steps
"""

from diffusion_jax.runs.config import Config
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.conditioning.label.dropout = 0.0
    config.model.learned_variance = True
    config.diffusion.prediction = "eps"
    config.diffusion.loss = "hybrid"
    return config
