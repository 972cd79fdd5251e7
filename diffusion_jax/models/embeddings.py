"""Embeddings of the timestep."""

import math

import jax.numpy as jnp


def sinusoidal(t, dim: int, max_period: float = 10000.0):
    """Sinusoidal features [B, dim] float32 of t [B]: cosines, then sines, at frequencies
    max_period^(-i / (dim/2)).

    Vaswani et al. 2017, section 3.5, in the order of DDPM's successors. An odd dim ends with a
    zero."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.asarray(t, jnp.float32)[:, None] * frequencies
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(features, ((0, 0), (0, dim % 2)))
