"""Conditioning: what a network is told beside x and t."""

from diffusion_jax.conditioning.augment import augmentation
from diffusion_jax.conditioning.conditioner import Conditioner, joined
from diffusion_jax.conditioning.given import given
from diffusion_jax.conditioning.labels import label

CONDITIONERS = {"label": label, "augmentation": augmentation, "given": given}

__all__ = ["CONDITIONERS", "Conditioner", "augmentation", "given", "joined", "label"]
