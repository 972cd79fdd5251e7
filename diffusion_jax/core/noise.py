"""Noise that belongs to its example: one PRNG key each, so that sample number i is the same in any
batch.

Every key becomes one of Threefry, whatever JAX's default: of other generators the numbers of one
key depend on the keys beside it in a vmap. Keys may be typed or legacy arrays of uint32."""

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Array, Level

IMPLEMENTATION = "threefry2x32"


def key(seed: Array | int) -> jax.Array:
    """The key of a seed, the same whatever JAX's default generator."""
    return jax.random.key(seed, impl=IMPLEMENTATION)


def threefry(keys: jax.Array | Array) -> jax.Array:
    """Keys [...] of Threefry: typed ones of it as they are, others by their words.

    A key of four words a, b, c, d, as of JAX's "rbg", whose halves are equal where it comes from a
    seed, becomes that of (a, b), which is the seed's; other halves are mixed in."""
    if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        if jax.random.key_impl(keys) == IMPLEMENTATION:
            return keys  # pyright: ignore[reportReturnType]
        words = jax.random.key_data(keys)
    elif keys.dtype == jnp.uint32:
        words = jnp.asarray(keys)
    else:
        raise ValueError(f"keys are those of jax.random, not an array of {keys.dtype}")
    if words.shape[-1] == 4:
        first, second = words[..., :2], words[..., 2:]
        words = first + jnp.uint32(0x9E3779B9) * (first ^ second)
    return jax.random.wrap_key_data(words, impl=IMPLEMENTATION)


def example_keys(key: jax.Array, index: Array) -> jax.Array:
    """Keys [B] of the examples numbered index [B]: fold_in(key, i)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(threefry(key), index)


def fold_in(keys: jax.Array, number: Array | int) -> jax.Array:
    """Keys [B] of part `number`, an integer, of each example's randomness."""
    return jax.vmap(jax.random.fold_in, (0, None))(threefry(keys), number)


def normal(keys: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B, *shape], example i from keys[i] alone. Raises ValueError where keys
    is None."""
    if keys is None:
        raise ValueError("noise is drawn here: keys are needed, one per example")
    return jax.vmap(lambda key: jax.random.normal(key, shape))(threefry(keys))


def initial_noise(keys: jax.Array, shape: tuple[int, ...], level: Level) -> jax.Array:
    """x_T [B, *shape] ~ N(0, (alpha^2 + sigma^2) I), the marginal of unit-variance data; N(0, I) in
    DDPM. level: scalar, or one of leading axes of [B, *shape]."""
    level = level.expand(1 + len(shape))
    return jnp.sqrt(level.alpha**2 + level.sigma**2) * normal(keys, shape)
