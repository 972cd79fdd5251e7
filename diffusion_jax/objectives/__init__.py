"""Objectives: what is trained."""

from diffusion_jax.objectives.denoising import denoising, hybrid, vlb
from diffusion_jax.objectives.objective import (
    Context,
    Objective,
    Problem,
    denoiser,
    noised,
    with_times,
)

OBJECTIVES = {"denoising": denoising, "vlb": vlb, "hybrid": hybrid}

__all__ = [
    "OBJECTIVES",
    "Context",
    "Objective",
    "Problem",
    "denoiser",
    "denoising",
    "hybrid",
    "noised",
    "vlb",
    "with_times",
]
