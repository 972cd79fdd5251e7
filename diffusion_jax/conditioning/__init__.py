"""Conditioning: what a network is told beside x and t."""

from diffusion_jax.conditioning import guidance_weight
from diffusion_jax.conditioning.augment import augmentation
from diffusion_jax.conditioning.conditioner import Conditioner, joined, told_in_sampling
from diffusion_jax.conditioning.given import given, image, numbers
from diffusion_jax.conditioning.labels import label
from diffusion_jax.conditioning.low_resolution import low
from diffusion_jax.conditioning.second_time import second_time
from diffusion_jax.conditioning.text import Encoders, text
from diffusion_jax.conditioning.words import words

CONDITIONERS = {
    "label": label,
    "augmentation": augmentation,
    "words": words,
    "text": text,
    "numbers": numbers,
    "image": image,
    "low": low,
    "guidance_weight": guidance_weight.guidance_weight,
    "given": given,
    "second_time": second_time,
}

__all__ = [
    "CONDITIONERS",
    "Conditioner",
    "Encoders",
    "augmentation",
    "given",
    "image",
    "joined",
    "label",
    "low",
    "numbers",
    "second_time",
    "text",
    "told_in_sampling",
    "words",
]
