"""The digits by Improved DDPM for likelihood: L_vlb with importance-sampled t. The laptop's twin of
vlb.py.

Command:   python main.py --workdir runs/digits_vlb --config experiments/digits_vlb.py
Hardware:  a laptop's CPU; about two minutes on two cores
Result:    see docs/results.md: 4.44 bits/dim at T = 200 after 500 steps
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits_cosine


def get_config() -> Config:
    config = digits_cosine.get_config()
    # so that every t has its ten losses early in the run
    config.diffusion.schedule = use("cosine", num_steps=200)
    config.diffusion.loss = "vlb"
    config.diffusion.timesteps = "second_moment"
    return config
