"""A network as functions of its parameters, which is all that objectives and samplers know."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.types import PyTree
from diffusion_jax.interop.files import check_fit, read_checkpoint
from diffusion_jax.models import perceptual
from diffusion_jax.models.precision import Precisions, recorded
from diffusion_jax.models.reuse import Reuse
from diffusion_jax.objectives import Perceptual


@dataclasses.dataclass(frozen=True)
class Network:
    """The `apply_fn` of a flax module; equal for equal modules.

    Called as (params, x_in [B, ...], t_in [B], cond, dropout_key); it trains, with dropout, where
    it is given the key."""

    module: nn.Module

    def __call__(self, params, x, t, cond=None, dropout_key=None) -> Any:
        rngs = None if dropout_key is None else {"dropout": dropout_key}
        train = dropout_key is not None
        return self.module.apply({"params": params}, x, t, cond or {}, train=train, rngs=rngs)

    def reusing(self, params, x, t, cond, reuse: Reuse) -> tuple[Any, Any]:
        """(output, deep features) without dropout; see `Reuse`."""
        return self.module.apply({"params": params}, x, t, cond or {}, reuse=reuse)

    @property
    def can_reuse(self) -> bool:
        """Whether the module has deep features that can be used again."""
        return "reuse" in inspect.signature(type(self.module).__call__).parameters

    def method(self, name: str) -> Callable[..., Any]:
        """(params, ...) -> what another method of the module returns, such as `encode`."""

        def call(params, *arguments):
            return self.module.apply({"params": params}, *arguments, method=name)

        return call


class Beginning(NamedTuple):
    """What a network begins with."""

    init_params: Callable  # key -> params
    params: PyTree  # their shapes
    output: tuple[int, ...]  # the shape of what it returns of one example
    precisions: Precisions  # of its layers


def as_key(tree: PyTree) -> tuple[Hashable, Hashable]:
    """The structure of a tree of shapes, and its leaves, as what a cache knows them by."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((a.shape, a.dtype) for a in leaves)


@functools.lru_cache(maxsize=64)
def beginning(module: nn.Module, shape: tuple[int, ...], structure: Any, leaves: Any) -> Beginning:
    """The beginning of a network of examples of a shape, told what `as_key` says; the network is
    traced once, for its own checks, for shapes and for its parameters."""

    @jax.jit
    def begun(key):
        cond = jax.tree.unflatten(structure, [jnp.zeros(*leaf) for leaf in leaves])
        x, t = jnp.zeros((1, *shape)), jnp.zeros((1,))
        output, variables = module.init_with_output(key, x, t, cond)
        return output, variables["params"]

    with recorded() as precisions:
        output, params = jax.eval_shape(begun, jax.random.key(0))
    init_params = jax.jit(lambda key: begun(key)[1])
    return Beginning(init_params, params, output.shape[1:], tuple(sorted(precisions.items())))


def _perceptual_weights(file: str) -> dict[str, Any]:
    found, shapes = read_checkpoint(file), perceptual.shapes()
    wanted = {name: a for name, a in found.items() if name in shapes}
    check_fit(wanted, shapes)
    return perceptual.weights(wanted)


PERCEPTUAL = Perceptual(_perceptual_weights, perceptual.distance)
