"""The digits at 4 x 4, the first run of a cascade to 8 x 8.

Command:   python main.py --workdir runs/digits_base4 --config experiments/digits_base4.py
Hardware:  a laptop's CPU
Result:    of use to experiments/digits_sr8.py alone, which is told what this run draws
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.data.source = use("digits", average=2)
    config.data.shape = (4, 4, 1)
    config.model.attention_resolutions = (2,)
    config.sampling.sampler, config.sampling.grid = "dpmpp_2m", "logsnr"
    config.sampling.steps = "20"
    config.evaluation.features = "pixels"
    return config
