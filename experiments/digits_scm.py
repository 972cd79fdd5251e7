"""One step for the digits by consistency in continuous time: sCD from a diffusion run whose network
embeds t smoothly (Lu & Song 2024).

Command:   python main.py --workdir runs/digits_slow --config experiments/digits.py \
               --config.model.time_scale=0.01
           python main.py --workdir runs/digits_scm --config experiments/digits_scm.py
Hardware:  a laptop's CPU; 9 minutes of one core, other work beside
Result:    FID 0.85 in one step, where 100 ancestral steps of experiments/digits.py have 0.36;
           92.7 % recognised (benchmarks/few_steps.py, docs/few_steps.md)
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits_ect


def get_config() -> Config:
    config = digits_ect.get_config()
    config.model.time_scale = 0.01
    config.diffusion.loss = use("continuous_consistency", warmup=200)
    config.training.init = "runs/digits_slow"
    return config
