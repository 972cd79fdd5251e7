"""Objectives: what is trained."""

from diffusion_jax.objectives.autoencoding import Perceptual, autoencoding
from diffusion_jax.objectives.denoising import denoising, hybrid, vlb
from diffusion_jax.objectives.guided import distilled_guidance
from diffusion_jax.objectives.objective import (
    Context,
    Objective,
    Problem,
    denoiser,
    noised,
    with_times,
)
from diffusion_jax.objectives.progressive import progressive
from diffusion_jax.objectives.uncertainty import uncertainty

OBJECTIVES = {
    "denoising": denoising,
    "vlb": vlb,
    "hybrid": hybrid,
    "uncertainty": uncertainty,
    "autoencoding": autoencoding,
    "progressive": progressive,
    "distilled_guidance": distilled_guidance,
}

__all__ = [
    "OBJECTIVES",
    "Context",
    "Objective",
    "Perceptual",
    "Problem",
    "autoencoding",
    "denoiser",
    "denoising",
    "distilled_guidance",
    "hybrid",
    "noised",
    "progressive",
    "uncertainty",
    "vlb",
    "with_times",
]
