"""CIFAR-10 from 16 x 16 to 32 x 32, the last run of the cascade that begins with
experiments/cifar10_cascade_8.py.

Command:   python main.py --workdir runs/cifar32 --config experiments/cifar10_cascade_32.py
Hardware:  one NVIDIA GPU of Ampere or later
Result:    not measured
"""

from diffusion_jax.runs.config import Config, use
from experiments import cifar10_cascade_16


def get_config() -> Config:
    config = cifar10_cascade_16.get_config()
    config.data.source = use("tfds", name="cifar10:3.0.2")
    config.data.shape = (32, 32, 3)
    config.model.attention_resolutions = (16, 8)
    return config
