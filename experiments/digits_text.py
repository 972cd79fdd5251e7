"""The digits by two words, "three" and "three inverted": text to image in its smallest form.

Command:   python main.py --workdir runs/digits_text --config experiments/digits_text.py
           python main.py sample --workdir runs/digits_text --prompt "three inverted"
Hardware:  a laptop's CPU; 8 minutes of two cores that other work shared
Result:    1,000 samples of 20 prompts: all show the digit and the polarity asked for
           (benchmarks/digits_text.py)
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.data.source = use("digits", captions=True)
    config.conditioning = use("words", length=4, rows=512, dropout=0.1)
    config.model.context = 64
    config.training.num_steps = 1500
    config.sampling.sampler, config.sampling.grid = "dpmpp_2m", "logsnr"
    config.sampling.steps = "15"
    config.sampling.guidance = 1.0
    config.sampling.prompts = tuple(
        f"{word}{how}" for how in ("", " inverted") for word in ("zero", "three", "four", "nine")
    )
    return config
