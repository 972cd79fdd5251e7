"""Modalities: what an example is, how samples of it are kept and shown."""

from diffusion_jax.modalities.images import images
from diffusion_jax.modalities.modality import Modality

MODALITIES = {"images": images}

__all__ = ["MODALITIES", "Modality", "images"]
