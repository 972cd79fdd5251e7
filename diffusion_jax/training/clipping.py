"""Norms of gradients and parameters, and clipping by them."""

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.core.types import PyTree
from diffusion_jax.devices.parallel import SMALL


def global_norm(tree: PyTree) -> jax.Array:
    """Root of the sum of the squares of all numbers, float32 [].

    Small arrays are joined. On an accelerator large ones of one shape are, too, in the pass that
    sums them: a kernel for each of a network's arrays would do less than starting it costs."""
    arrays = jax.tree.leaves(tree)
    small = [a for a in arrays if a.size < SMALL]
    large = [a for a in arrays if a.size >= SMALL]
    parts = [jnp.concatenate([a.ravel() for a in small])] if small else []
    by_platform = {"cpu": _squares, "default": _squares_by_shape}
    total = jax.lax.platform_dependent(large, **by_platform) + _squares(parts)
    return jnp.sqrt(total)


def _squares(arrays: list) -> jax.Array:
    return sum((jnp.sum(jnp.square(a)) for a in arrays), jnp.zeros((), jnp.float32))


def _squares_by_shape(arrays: list) -> jax.Array:
    shapes = dict.fromkeys(a.shape for a in arrays)
    return _squares([jnp.stack([a for a in arrays if a.shape == shape]) for shape in shapes])


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Gradients times limit over their norm, where that is larger than limit (Pascanu et al. 2013,
    algorithm 1).

    One factor for all of them, which becomes part of the optimizer's own pass over each.
    """

    def update(updates, state, params=None):
        factor = jnp.minimum(1.0, limit / global_norm(updates))
        return jax.tree.map(lambda g: factor * g, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
