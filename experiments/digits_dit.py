"""Handwritten digits, 8 x 8, class-conditional, by a diffusion transformer (Peebles & Xie 2023).

Command:   python main.py --workdir runs/digits_dit --config experiments/digits_dit.py
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.model = use("dit", width=128, depth=6, heads=4)
    return config
