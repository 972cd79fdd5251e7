"""CIFAR-10 from 8 x 8 to 16 x 16, the second run of the cascade that begins with
experiments/cifar10_cascade_8.py.

Command:   python main.py --workdir runs/cifar16 --config experiments/cifar10_cascade_16.py
Hardware:  one NVIDIA GPU of Ampere or later
Result:    not measured
"""

from diffusion_jax.runs.config import Config, use
from experiments import cifar10_cascade_8


def get_config() -> Config:
    config = cifar10_cascade_8.get_config()
    config.data.source = use("tfds", name="cifar10:3.0.2", average=2)
    config.data.shape = (16, 16, 3)
    config.conditioning = [use("label", dropout=0.1), use("low", factor=2)]
    config.model.channel_mult = (1, 2, 2)
    return config
