"""The precisions that a network's layers compute in, and its parameters in them."""

import contextlib
from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.types import PyTree
from diffusion_jax.models.layers import Conv

# What converts all of its parameters before it computes; a norm multiplies by them in float32.
LAYERS = (Conv, nn.Conv, nn.Dense, nn.DenseGeneral)
Precisions = tuple[tuple[tuple[str, ...], str], ...]  # (a layer's path, its dtype)


@contextlib.contextmanager
def recorded() -> Iterator[dict[tuple[str, ...], str]]:
    """Within it, the layers of `LAYERS` that are called and compute in bfloat16 are recorded: path
    -> dtype."""
    found: dict[tuple[str, ...], str] = {}

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, LAYERS) and module.dtype == jnp.bfloat16:
            found[module.path] = "bfloat16"
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        yield found


def cast(params: PyTree, precisions: Precisions) -> PyTree:
    """A layer's own parameters in its precision, the others as they are."""
    if not precisions or not params:  # as the frozen ones where there are none
        return params
    of_layer, flat = dict(precisions), dict(flatten_dict(params))
    for path, a in flat.items():
        if dtype := of_layer.get(path[:-1]):
            flat[path] = jnp.asarray(a, dtype)
    return unflatten_dict(flat)
