"""The digits by Improved DDPM: cosine schedule, learned variance, L_hybrid. The laptop's twin of cosine.py.

Command:   python main.py --workdir runs/digits_cosine --config experiments/digits_cosine.py
"""

import pathlib
import runpy

from diffusion_jax.config import Config

DIGITS = runpy.run_path(str(pathlib.Path(__file__).with_name("digits.py")))


def get_config() -> Config:
    config = DIGITS["get_config"]()
    config.model.learned_variance = True
    config.diffusion.prediction = "eps"
    config.diffusion.loss = "hybrid"
    return config
