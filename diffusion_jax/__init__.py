"""Denoising diffusion in JAX: pure functions that read like the papers.

    import diffusion_jax as dj

    schedule = dj.schedules.cosine(num_steps=1000)
    x_t = dj.q_sample(x0, eps, schedule.level(t))

The functions are grouped by module as the papers group them; the names below are the ones that most
notebooks need."""

from diffusion_jax import denoisers, samplers
from diffusion_jax.core import (
    grids,
    mixtures,
    noise,
    predictions,
    process,
    schedules,
    timesteps,
    weightings,
)
from diffusion_jax.core.grids import respaced
from diffusion_jax.core.noise import example_keys, initial_noise
from diffusion_jax.core.process import q_posterior, q_sample, q_step
from diffusion_jax.core.types import (
    CLEAN,
    Denoiser,
    Level,
    Loss,
    Parameterization,
    Prediction,
    Sampler,
    Schedule,
    Timesteps,
)
from diffusion_jax.core.version import __version__
from diffusion_jax.denoisers import classifier_free, clip_x0, make_denoiser
from diffusion_jax.likelihood import ode
from diffusion_jax.likelihood import variational as likelihood
from diffusion_jax.objectives import losses
from diffusion_jax.samplers import ancestral, ddim, editing, invert, sample

__all__ = [
    "CLEAN",
    "Denoiser",
    "Level",
    "Loss",
    "Parameterization",
    "Prediction",
    "Sampler",
    "Schedule",
    "Timesteps",
    "__version__",
    "ancestral",
    "classifier_free",
    "clip_x0",
    "ddim",
    "denoisers",
    "editing",
    "example_keys",
    "grids",
    "initial_noise",
    "invert",
    "likelihood",
    "losses",
    "make_denoiser",
    "mixtures",
    "noise",
    "ode",
    "predictions",
    "process",
    "q_posterior",
    "q_sample",
    "q_step",
    "respaced",
    "sample",
    "samplers",
    "schedules",
    "timesteps",
    "weightings",
]
