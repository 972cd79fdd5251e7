"""Noise that belongs to its example: one PRNG key each, so that sample number i is the same in any
batch."""

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Array, Level


IMPL = "threefry2x32"  # of the keys, whatever JAX's default is


def key(seed) -> jax.Array:
    """The key of a seed, a scalar."""
    return jax.random.key(seed, impl=IMPL)


def example_keys(key: jax.Array, index: Array) -> jax.Array:
    """Keys [B] of the examples numbered index [B]: fold_in(key, i)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def fold_in(keys: jax.Array, number: Array | int) -> jax.Array:
    """Keys [B] of part `number`, an integer, of each example's randomness."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def normal(keys: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B, *shape], example i from keys[i] alone. Raises ValueError where keys
    is None."""
    if keys is None:
        raise ValueError("noise is drawn here: keys are needed, one per example")
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...], level: Level) -> jax.Array:
    """x_T [B, *shape] ~ N(0, (alpha^2 + sigma^2) I), the marginal of unit-variance data; N(0, I) in
    DDPM. level: scalar."""
    return jnp.sqrt(level.alpha**2 + level.sigma**2) * normal(keys, shape)
