"""The digits by Improved DDPM for likelihood: L_vlb with importance-sampled t. The laptop's twin of vlb.py.

Command:   python main.py --workdir runs/digits_vlb --config experiments/digits_vlb.py
"""

import pathlib
import runpy

from diffusion_jax.config import Config

DIGITS = runpy.run_path(str(pathlib.Path(__file__).with_name("digits_cosine.py")))


def get_config() -> Config:
    config = DIGITS["get_config"]()
    config.diffusion.num_steps = 200  # so that every t has its ten losses early in the run
    config.diffusion.loss = "vlb"
    config.diffusion.timesteps = "second_moment"
    return config
