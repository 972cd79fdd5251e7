"""One step for the digits by easy consistency tuning: the teacher of experiments/digits.py becomes
a consistency model (Geng et al. 2024).

Command:   python main.py --workdir runs/digits_ect --config experiments/digits_ect.py
           (after `make train`, whose runs/digits it starts from)
Hardware:  a laptop's CPU; 3 minutes of one core
Result:    FID 0.92 in one step and 0.45 in two, where DDIM of the teacher has 5.14 and 1.78, and
           its 100 ancestral steps 0.36; 97.6 % and 97.1 % recognised (benchmarks/few_steps.py,
           docs/few_steps.md)
"""

from diffusion_jax.runs.config import Config, Sampling, use
from experiments import digits


def get_config() -> Config:
    config = digits.get_config()
    config.diffusion.loss = use("easy_consistency", stage_steps=100)
    config.diffusion.timesteps = use("lognormal", mean=-0.4, std=1.6)
    training = config.training
    training.init, training.num_steps, training.learning_rate = "runs/digits", 800, 5e-4
    training.decay, training.warmup_steps, training.ema_decay = "cosine", 50, 0.99
    training.eval_every, training.sample_every, training.checkpoint_every = 0, 0, 200
    config.sampling = Sampling(sampler="consistency", grid="trailing", steps="1", num=100)
    config.evaluation.bits_per_dim = 0
    return config
