"""What a user should know of the way in which a run draws."""

import numpy as np

from diffusion_jax.core.types import Level
from diffusion_jax.runs.config import Config

# The longest step, as a ratio of sigma / alpha, after which a sampler errs: from there the digits
# are spoilt. Those that correct Euler's step in sigma / alpha as Heun's do have its bound; with
# ancestral noise the ODE goes twice as far.
LONGEST_STEP = {
    "heun": 6.0,
    "edm_churn": 6.0,
    "restart": 6.0,
    "dpm2": 6.0,
    "dpm2_ancestral": 6.0**0.5,
    "dpm_solver_2": 6.0,
    "dpm_solver_3": 6.0,
    "annealed_langevin": 2.8,
}


def advice(config: Config, grid: Level) -> str:
    """What would make better samples where the sampler and its grid don't go together; empty where
    they do."""
    sampler = config.sampling.sampler.entry
    alpha, sigma = (np.asarray(a, float) for a in (grid.alpha, grid.sigma))
    ratio = sigma / np.maximum(alpha, 1e-30)
    growth = ratio[:-1] / np.maximum(ratio[1:], 1e-30)
    if not len(growth) or growth.max() < LONGEST_STEP.get(sampler, np.inf):
        return ""
    i = int(growth.argmax())
    which = "first" if i == 0 else "last" if i == len(growth) - 1 else f"{i + 1}th"
    return (
        f"note: {sampler} goes from sigma/alpha = {ratio[i]:.3g} to {ratio[i + 1]:.3g} in its "
        f"{which} step, which is too long for it; take more steps, "
        "--config.sampling.grid=logsnr or karras, or --config.sampling.sampler=heun_flow"
    )
