"""A network as functions of its parameters, which is all that objectives and samplers know."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from diffusion_jax.interop.files import check_fit, read_checkpoint
from diffusion_jax.models import perceptual
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

    def method(self, name: str) -> Callable[..., Any]:
        """(params, ...) -> what another method of the module returns, such as `encode`."""

        def call(params, *arguments):
            return self.module.apply({"params": params}, *arguments, method=name)

        return call


def _perceptual_weights(file: str) -> dict[str, Any]:
    found, shapes = read_checkpoint(file), perceptual.shapes()
    wanted = {name: a for name, a in found.items() if name in shapes}
    check_fit(wanted, shapes)
    return perceptual.weights(wanted)


PERCEPTUAL = Perceptual(_perceptual_weights, perceptual.distance)
