"""The digits by DDPM: linear schedule, fixed variance, L_simple. The laptop's twin of linear.py.

Command:   python main.py --workdir runs/digits_linear --config experiments/digits_linear.py
"""

import pathlib
import runpy

from diffusion_jax.config import Config

DIGITS = runpy.run_path(str(pathlib.Path(__file__).with_name("digits.py")))


def get_config() -> Config:
    config = DIGITS["get_config"]()
    config.diffusion.schedule = "linear"
    config.diffusion.prediction = "eps"
    return config
