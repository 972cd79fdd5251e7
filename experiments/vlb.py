"""Improved DDPM on CIFAR-10 for likelihood (Nichol & Dhariwal 2021): L_vlb with importance-sampled
t.

Command:   python main.py --workdir runs/vlb --config experiments/vlb.py
Hardware:  the paper does not say. On one H100 expect days; not yet measured here.
Paper:     bits/dim 2.94 and FID 11.47 after 500,000 steps (table 2 of the paper, not our numbers)

As cosine.py, with the bound itself as the loss and t drawn by the second moments of the last ten
losses (eq. 18)."""

from diffusion_jax.runs.config import Config
from experiments import cosine


def get_config() -> Config:
    config = cosine.get_config()
    config.diffusion.loss = "vlb"
    config.diffusion.timesteps = "second_moment"
    return config
