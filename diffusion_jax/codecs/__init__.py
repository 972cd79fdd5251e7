"""Codecs: between data, as a source has them, and x0, what the diffusion sees."""

from diffusion_jax.codecs.autoencoder import Autoencoders, Coder, autoencoder
from diffusion_jax.codecs.codec import Codec
from diffusion_jax.codecs.floats import floats
from diffusion_jax.codecs.pixels import pixels

CODECS = {"pixels": pixels, "floats": floats, "autoencoder": autoencoder}

__all__ = ["CODECS", "Autoencoders", "Codec", "Coder", "autoencoder", "floats", "pixels"]
