"""Super-resolution of the digits, from 4 x 4 to 8 x 8: a cascade in its smallest form.

Command:   python main.py --workdir runs/digits_base4 --config experiments/digits_base4.py
           python main.py --workdir runs/digits_sr8 --config experiments/digits_sr8.py
           python main.py sample --workdir runs/digits_base4,runs/digits_sr8
Hardware:  a laptop's CPU
Result:    FID 0.34 by the digits' features with the base run, where one run of the same training
           time has 0.20; held-out digits 3.4 dB above bicubic, 5.9 dB as means of 8 samples
           (benchmarks/cascade.py, docs/results.md)
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    low = use("low", factor=2, noise=0.2, sampling_noise=0.0)
    config.conditioning = [use("label", dropout=0.1), low]
    config.training.num_steps = 600
    config.sampling.sampler, config.sampling.grid = "dpmpp_2m", "logsnr"
    config.sampling.steps = "20"
    return config
