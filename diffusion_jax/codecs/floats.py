"""Floats in units of their own deviation."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.codecs.codec import Codec
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import above
from diffusion_jax.data.spec import Declared


@component
def floats(declared: Declared, mean: float = 0.0, deviation: float = 1.0) -> Codec:
    """Floats less a mean and over a deviation, which are stated; x0 has no range and is not
    clipped.

    Args:
      mean: of the data, which x0 has at 0.
      deviation: of the data, above 0, which is 1 in x0.
    """
    above(0, deviation=deviation)
    if declared.range is None and declared.dtype == "uint8":
        raise ValueError("floats takes data that are floats; 8-bit data have the codec pixels")

    def encode(params, keys, data):
        return (jnp.asarray(data).astype(jnp.float32) - mean) / deviation

    def decode(params, x0):
        xp = jnp if isinstance(x0, jax.Array) else np
        return (x0 * deviation + mean).astype(xp.float32)

    return Codec(encode, decode, tuple(declared.shape), range=None)
