"""Numbers in [0, 1], such as noise levels, as a network is told them."""

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Array

WAVES = 8  # frequencies


def waves(values: Array) -> jax.Array:
    """Sinusoids [..., 2 WAVES] of values [...] in [0, 1]: cos(pi k a), then sin(pi k a), k from 1.

    They are smooth, so that what a network makes of them can be differentiated."""
    angles = jnp.pi * jnp.asarray(values)[..., None] * jnp.arange(1, WAVES + 1)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
