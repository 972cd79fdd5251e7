"""Pixels as they are, scaled to [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.codecs.codec import Codec
from diffusion_jax.core.components import component
from diffusion_jax.data.spec import Declared


@component
def pixels(declared: Declared) -> Codec:
    """The data themselves, their range scaled to [-1, 1]: 0 ... 255 of uint8, or that of floats.

    Decoding uint8 clips and rounds. Floats come back in their own units, not clipped.
    """
    if declared.range is None and declared.dtype != "uint8":
        raise ValueError(
            f"pixels scales a range, and {declared.dtype} data have none; config.codec=floats "
            "takes them as they are"
        )
    low, high = (0.0, 255.0) if declared.range is None else declared.range
    half = 0.5 * (high - low)

    def encode(params, keys, data):
        data = jnp.asarray(data).astype(jnp.float32)
        return (data if low == 0.0 else data - low) / half - 1.0

    def decode(params, x0):
        xp = jnp if isinstance(x0, jax.Array) else np
        if declared.range is None:
            return xp.clip(xp.round((x0 + 1.0) * half), 0, 255).astype(np.uint8)
        return ((x0 + 1.0) * half + low).astype(np.float32)

    bins = 256 if declared.range is None else None
    return Codec(encode, decode, tuple(declared.shape), (-1.0, 1.0), bins)
