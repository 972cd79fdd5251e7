"""The digits by a diffusion transformer of six blocks over 16 patches (DiT, Peebles & Xie 2023).

Command:   python main.py --workdir runs/digits_dit --config experiments/digits_dit.py
Hardware:  a CPU; 750 steps in the processor's time of the U-Net's 1000 in experiments/digits.py
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.model = use("dit", width=128, depth=6, heads=4)
    config.training.num_steps = 750
    return config
