"""Norms of gradients and parameters, and clipping by them."""

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.core.types import PyTree
from diffusion_jax.devices.parallel import SMALL


def global_norm(tree: PyTree) -> jax.Array:
    """Root of the sum of the squares of all numbers, float32 []."""
    arrays = jax.tree.leaves(tree)
    small, large = (
        [array for array in arrays if (array.size < SMALL) == is_small]
        for is_small in (True, False)
    )
    joined = large + ([jnp.concatenate([array.ravel() for array in small])] if small else [])
    squares = [jnp.sum(jnp.square(array)) for array in joined]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Gradients times limit over their norm, where that is larger than limit (Pascanu et al. 2013,
    algorithm 1).

    One factor for all of them, which becomes part of the optimizer's own pass over each.
    """

    def update(updates, state, params=None):
        factor = jnp.minimum(1.0, limit / global_norm(updates))
        return jax.tree.map(lambda g: factor * g, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
