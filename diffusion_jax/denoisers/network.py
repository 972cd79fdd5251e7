"""The denoiser of a network, and how denoisers are pytrees.

Every denoiser that the library makes is a dataclass that JAX knows as a node: what may be traced
(parameters, conditions, weights, inner denoisers) is data, functions and numbers that shape the
program are static. So a jitted function takes a denoiser as an argument."""

import dataclasses
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from diffusion_jax.core import second_time
from diffusion_jax.core.types import (
    ApplyFn,
    Denoiser,
    Level,
    Parameterization,
    Prediction,
    PyTree,
)

STATIC = {"static": True}  # metadata of a field that is no data


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Plain:
    """A denoiser that is a function of Python, as a node without leaves."""

    function: Denoiser = field(metadata=STATIC)

    def __call__(self, x, level: Level) -> Prediction:
        return self.function(x, level)


def as_node(denoiser: Denoiser) -> Denoiser:
    """The denoiser, in a `Plain` where it is no pytree."""
    leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(denoiser))
    return Plain(denoiser) if leaf else denoiser


def of_networks(denoiser: Denoiser) -> bool:
    """Whether a denoiser is made of networks alone: no function of Python, which may hold
    tracers."""
    denoiser = as_node(denoiser)
    if isinstance(denoiser, NetworkDenoiser | Plain):
        return isinstance(denoiser, NetworkDenoiser)
    one, several = getattr(denoiser, "denoiser", None), getattr(denoiser, "denoisers", ())
    inner = (*several, *(() if one is None else (one,)))
    return bool(inner) and all(map(of_networks, inner))


def split_output(output, channels: int):
    """A network's output [B, ..., C or 2C] -> (its prediction [B, ..., C], the variance fraction
    [B, ..., C] or None).

    With learned variance the last C channels are v in [-1, 1], mapped to the fraction (v + 1) / 2
    (Nichol & Dhariwal 2021, eq. 15)."""
    if output.shape[-1] == channels:
        return output, None
    if output.shape[-1] != 2 * channels:
        raise ValueError(
            f"the network returns {output.shape[-1]} channels for {channels}-channel data"
        )
    output, v = jnp.split(output, 2, axis=-1)
    return output, (v + 1.0) / 2.0


def with_eps(x0, x, level: Level, aux=None) -> Prediction:
    """The Prediction of an x0: eps = (x - alpha x0) / sigma."""
    level = level.expand(x.ndim)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma, aux)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """The denoiser of a network, what `make_denoiser` returns: its four arguments, callable as a
    Denoiser.

    Of two with the same apply_fn, params and parameterization guidance makes one call. As a pytree
    its leaves are those of params, cond and `to`, the level, scalar or [B], that a cond's second
    time says; None for that of x, where a flow map is an ordinary denoiser."""

    apply_fn: ApplyFn = field(metadata=STATIC)
    params: PyTree
    parameterization: Parameterization = field(metadata=STATIC)
    cond: PyTree = None
    to: Level | None = None

    def __call__(self, x, level: Level) -> Prediction:
        # a level is one number, one an example [B] or one a frame [B, F]
        rows = lambda a: jnp.broadcast_to(a, x.shape[: max(1, jnp.ndim(a))])
        batched = Level(*map(rows, level))
        cond = second_time.told(
            self.cond, batched if self.to is None else Level(*map(rows, self.to))
        )
        x_in, t_in = self.parameterization.inputs(x, batched)
        output, aux = split_output(self.apply_fn(self.params, x_in, t_in, cond), x.shape[-1])
        return with_eps(self.parameterization.x0(output, x, batched), x, batched, aux)

    def _replace(self, **changes) -> "NetworkDenoiser":
        """The denoiser with some of its arguments changed, as of a NamedTuple."""
        return dataclasses.replace(self, **changes)


def make_denoiser(
    apply_fn: ApplyFn, params: PyTree, parameterization: Parameterization, cond: PyTree = None
) -> NetworkDenoiser:
    """The denoiser of a network.

    apply_fn: (params, x_in [B, ...], t_in [B], cond) -> output [B, ..., C], or 2C channels with
    learned variance, which then fills `Prediction.aux`. cond: a pytree with a leading axis B, such
    as labels [B], or None."""
    return NetworkDenoiser(apply_fn, params, parameterization, cond)
