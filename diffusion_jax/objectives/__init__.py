"""Objectives: what is trained."""

from diffusion_jax.objectives.autoencoding import Perceptual, autoencoding
from diffusion_jax.objectives.consistency import (
    consistency_distillation,
    consistency_training,
    easy_consistency,
)
from diffusion_jax.objectives.continuous_consistency import continuous_consistency
from diffusion_jax.objectives.denoising import denoising, hybrid, vlb
from diffusion_jax.objectives.flow_maps import mean_flow, shortcut
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
from diffusion_jax.objectives.reflow import reflow
from diffusion_jax.objectives.uncertainty import uncertainty

OBJECTIVES = {
    "denoising": denoising,
    "vlb": vlb,
    "hybrid": hybrid,
    "uncertainty": uncertainty,
    "autoencoding": autoencoding,
    "consistency_distillation": consistency_distillation,
    "consistency_training": consistency_training,
    "easy_consistency": easy_consistency,
    "continuous_consistency": continuous_consistency,
    "mean_flow": mean_flow,
    "shortcut": shortcut,
    "reflow": reflow,
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
    "consistency_distillation",
    "consistency_training",
    "continuous_consistency",
    "denoiser",
    "denoising",
    "distilled_guidance",
    "easy_consistency",
    "hybrid",
    "mean_flow",
    "noised",
    "progressive",
    "reflow",
    "shortcut",
    "uncertainty",
    "vlb",
    "with_times",
]
