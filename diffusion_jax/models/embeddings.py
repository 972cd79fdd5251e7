"""Embeddings of the timestep and of the places of a grid."""

import math

import jax.numpy as jnp
import numpy as np


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


def _angles(height: int, width: int, frequencies: int, max_period: float = 10000.0):
    """(column, row) times max_period^(-i / frequencies), each float64 [height * width,
    frequencies], of a grid's places, row by row."""
    of_place = max_period ** (-np.arange(frequencies) / frequencies)
    rows, columns = np.divmod(np.arange(height * width), width)
    return columns[:, None] * of_place, rows[:, None] * of_place


def grid_sinusoids(height: int, width: int, dim: int) -> np.ndarray:
    """Sinusoidal features [height * width, dim] float32 of a grid's places, row by row: sines, then
    cosines of the column, then those of the row (Vaswani et al. 2017 in two dimensions, in the
    order of DiT's weights). dim is divisible by 4."""
    columns, rows = _angles(height, width, dim // 4)
    waves = (np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows))
    return np.concatenate(waves, axis=1).astype(np.float32)


def grid_rotations(height: int, width: int, dim: int, others: int = 0) -> np.ndarray:
    """Cosines and sines [2, others + height * width, dim / 2] float32 by which `rotated` turns
    vectors of dim numbers: half of their pairs by the column, half by the row (Su et al. 2021 in
    two dimensions, Heo et al. 2024). `others` that have no place come first and are left
    as they are. dim is divisible by 4."""
    angles = np.concatenate(_angles(height, width, dim // 4), axis=1)
    angles = np.concatenate([np.zeros((others, dim // 2)), angles])
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotated(x, rotations):
    """x [B, N, heads, d], the pairs (i, i + d / 2) turned by rotations [2, N, d / 2]; in
    float32."""
    cos, sin = rotations[:, :, None]
    one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (one * cos - other * sin, one * sin + other * cos)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
