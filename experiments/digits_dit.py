"""The digits by a diffusion transformer of six blocks over 16 patches (DiT, Peebles & Xie 2023).

Command:   python main.py --workdir runs/digits_dit --config experiments/digits_dit.py
Hardware:  a CPU; 167 s of one core for the 750 steps with their compilation, where the U-Net's
           1000 of experiments/digits.py take 186 s
Result:    96.5 % of 1,000 samples recognised as the digit asked for (benchmarks/digits_quality.py)
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.model = use("dit", width=128, depth=6, heads=4)
    config.training.num_steps = 750
    return config
