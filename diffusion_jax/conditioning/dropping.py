"""What conditioners share: the share of examples that is told nothing, and values under a mask."""

import zlib

import jax
import jax.numpy as jnp

from diffusion_jax.core.noise import fold_in


def part_of(name: str) -> int:
    """The part of an example's randomness that belongs to a condition of that name."""
    return zlib.crc32(name.encode()) >> 1


def kept(keys: jax.Array | None, part: int, dropout: float, count: int) -> jax.Array:
    """float32 [count], 0 where an example is told nothing, by its own key; without keys all 1."""
    keep = jnp.ones((count,), jnp.float32)
    if keys is None or dropout == 0:
        return keep
    drop = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(fold_in(keys, part))
    return jnp.where(drop, 0.0, keep)


def masked(values: jax.Array, keep: jax.Array) -> jax.Array:
    """values [B, ...], zeros where keep [B] is 0."""
    shaped = keep.reshape(keep.shape + (1,) * (values.ndim - keep.ndim))
    return jnp.where(shaped > 0, values, jnp.zeros_like(values))
