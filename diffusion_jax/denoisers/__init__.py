"""Denoisers: functions (x, level) -> Prediction, and transforms from denoiser to denoiser.

A sampler's step receives one and knows nothing of networks, guidance or clipping.
"""

from diffusion_jax.denoisers.flow_maps import going_to
from diffusion_jax.denoisers.guidance import (
    autoguidance,
    classifier_free,
    classifier_guided,
    combined,
)
from diffusion_jax.denoisers.limits import clip_x0, dynamic_threshold
from diffusion_jax.denoisers.network import (
    NetworkDenoiser,
    make_denoiser,
    split_output,
    with_eps,
)

__all__ = [
    "NetworkDenoiser",
    "autoguidance",
    "classifier_free",
    "classifier_guided",
    "clip_x0",
    "combined",
    "dynamic_threshold",
    "going_to",
    "make_denoiser",
    "split_output",
    "with_eps",
]
