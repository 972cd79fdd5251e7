"""One step for the digits by consistency distillation: a student agrees at both ends of a step of
the teacher's ODE (Song et al. 2023).

Command:   python main.py --workdir runs/digits_cd --config experiments/digits_cd.py
           (after `make train`, whose runs/digits it starts from)
Hardware:  a laptop's CPU; 9 minutes of one core, other work beside
Result:    FID 0.53 in one step and, with --config.sampling.steps=991,500, 0.37 in two, where the
           teacher's 100 ancestral steps have 0.36; 95.9 % and 96.3 % recognised
           (benchmarks/few_steps.py, docs/few_steps.md)

One step is taken from index 991, sigma / alpha = 80, where the loss's grid ends.
"""

from diffusion_jax.runs.config import Config, use
from experiments import digits_ect


def get_config() -> Config:
    config = digits_ect.get_config()
    config.diffusion.loss = use(
        "consistency_distillation", levels=18, solver="heun", metric="huber"
    )
    config.diffusion.timesteps = "karras"
    config.sampling.grid, config.sampling.steps = "explicit", "991"
    return config
