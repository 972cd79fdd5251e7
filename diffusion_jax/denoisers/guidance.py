"""Guidance: weighted sums of denoisers, and gradients of a classifier."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from diffusion_jax.core.settings import inside
from diffusion_jax.core.types import Denoiser, Level, Prediction, expand
from diffusion_jax.denoisers.network import STATIC, NetworkDenoiser, as_node, with_eps


@dataclass(frozen=True, eq=False)
class Combined:
    """What `combined` returns. As a pytree it holds parameters that its denoisers share once."""

    denoisers: tuple[Denoiser, ...]
    weights: tuple[Any, ...]
    interval: tuple[float, float] | None
    rescale: float

    def __call__(self, x, level: Level) -> Prediction:
        if self.interval is None:
            return self.everywhere(x, level)[0]
        ratio = jnp.asarray(level.sigma) / level.alpha
        acts = (self.interval[0] < ratio) & (ratio <= self.interval[1])

        def guided():
            guided, first = self.everywhere(x, level)
            here = expand(acts, x.ndim)
            x0 = jnp.where(here, guided.x0, first.x0)
            eps = jnp.where(here, guided.eps, first.eps)
            return Prediction(x0, eps, guided.aux) if jnp.ndim(acts) else guided

        def alone():
            first = self.denoisers[0](x, level)
            dtype = jnp.result_type(first.x0, *self.weights)
            return Prediction(first.x0.astype(dtype), first.eps.astype(dtype), first.aux)

        if isinstance(acts, core.Tracer):
            return jax.lax.cond(jnp.any(acts), guided, alone)
        return guided() if jnp.any(acts) else alone()

    def everywhere(self, x, level: Level) -> tuple[Prediction, Prediction]:
        """(the guided prediction, the first denoiser's), whatever the interval."""
        predictions = _each(self.denoisers, x, level)
        first = predictions[0]
        x0 = _weighted(self.weights, [p.x0 for p in predictions])
        if self.rescale == 0.0:
            eps = _weighted(self.weights, [p.eps for p in predictions])
            return Prediction(x0, eps, first.aux), first
        axes = tuple(range(1, x.ndim))
        std = jnp.std(x0, axes, keepdims=True)
        ratio = jnp.std(first.x0, axes, keepdims=True) / jnp.where(std > 0, std, 1.0)
        change = jnp.where(std > 0, ratio, 1.0) - 1.0
        return with_eps((1.0 + self.rescale * change) * x0, x, level, first.aux), first


def _flatten(guided: Combined):
    """(distinct leaves, the rest): a leaf that stands in several places, as the parameters of two
    branches of a network, is one, so that they remain one network under jit."""
    leaves, structure = jax.tree.flatten((guided.denoisers, guided.weights))
    distinct = {id(leaf): leaf for leaf in leaves}
    place = {number: i for i, number in enumerate(distinct)}
    places = tuple(place[id(leaf)] for leaf in leaves)
    return tuple(distinct.values()), (structure, places, guided.interval, guided.rescale)


def _unflatten(held, distinct) -> Combined:
    structure, places, interval, rescale = held
    distinct = tuple(distinct)
    denoisers, weights = structure.unflatten([distinct[place] for place in places])
    return Combined(denoisers, weights, interval, rescale)


jax.tree_util.register_pytree_node(Combined, _flatten, _unflatten)


def combined(
    denoisers: Sequence[Denoiser],
    weights: Sequence[Any],
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """The weighted sum of denoisers, of x0 and eps alike, since x = alpha x0 + sigma eps is linear.

    weights: one a denoiser, a scalar or [B]; of a denoiser whose x0 and eps fit to x they sum to 1.
    `aux` is the first denoiser's. NetworkDenoisers of one network, which differ by their conditions
    alone, are evaluated in one call of as many times the batch.

    Args:
      interval: the sum acts where low < sigma / alpha <= high; elsewhere the first denoiser alone
        is evaluated and acts (Kynkäänniemi et al. 2024). None for everywhere.
      rescale: phi, from 0 to 1: x0 is multiplied by phi std(first x0) / std(x0) + 1 - phi, std over
        each example, and eps recomputed (Lin et al. 2023, section 3.4, there of the network's
        output; x0 makes it independent of the parameterization).
    """
    if len(denoisers) != len(weights) or not denoisers:
        raise ValueError(f"one weight for each of {len(denoisers)} denoisers, not {len(weights)}")
    if interval is not None and not 0.0 <= interval[0] < interval[1]:
        raise ValueError(f"an interval is 0 <= low < high, not {interval}")
    inside(0, 1, rescale=rescale)
    ends = None if interval is None else (interval[0], interval[1])
    return Combined(tuple(map(as_node, denoisers)), tuple(weights), ends, rescale)


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    w: Any,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """Classifier-free guidance: eps = (1 + w) eps_c - w eps_u (Ho & Salimans 2022, eq. 6); w = 0 is
    no guidance.

    w: scalar or [B]. It is `combined` of two, which says more; `aux` is the conditional one's.

    Args:
      interval: guidance acts where low < sigma / alpha <= high alone; None for everywhere.
      rescale: share, from 0 to 1, by which x0 gets the conditional one's contrast back.
    """
    w = jnp.asarray(w)
    return combined((conditional, unconditional), (1 + w, -w), interval, rescale)


def autoguidance(
    denoiser: Denoiser,
    weaker: Denoiser,
    w: Any,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """Autoguidance: D = D_weaker + (1 + w) (D - D_weaker), away from a weaker model (Karras et al.
    2024, eq. 3, whose w is 1 + w here).

    weaker: of the same data and conditions, smaller or less trained. The other arguments are those
    of `classifier_free`.

    Args:
      interval: guidance acts where low < sigma / alpha <= high alone; None for everywhere.
      rescale: share, from 0 to 1, by which x0 gets the better one's contrast back.
    """
    return classifier_free(denoiser, weaker, w, interval, rescale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ClassifierGuided:
    """What `classifier_guided` returns."""

    denoiser: Denoiser
    log_prob: Callable[[Any, Level], jax.Array] = field(metadata=STATIC)
    scale: Any

    def __call__(self, x, level: Level) -> Prediction:
        prediction = self.denoiser(x, level)
        gradient = jax.grad(lambda x: jnp.sum(self.log_prob(x, level)))(x)
        level = level.expand(x.ndim)
        eps = prediction.eps - level.sigma * expand(self.scale, x.ndim) * gradient
        return Prediction((x - level.sigma * eps) / level.alpha, eps, prediction.aux)


def classifier_guided(
    denoiser: Denoiser, log_prob: Callable[[Any, Level], jax.Array], scale: Any = 1.0
) -> Denoiser:
    """Classifier guidance: eps - sigma scale grad_x log p(y | x) (Dhariwal & Nichol 2021, algorithm
    2; Song et al. 2021).

    log_prob: (x [B, ...], level) -> [B], log p(y | x) of each example's own noisy x. scale: scalar
    or [B]. x0 follows from eps, which needs alpha > 0; `aux` stays."""
    return ClassifierGuided(as_node(denoiser), log_prob, scale)


def _weighted(weights: Sequence[Any], values: Sequence[Any]) -> Any:
    first, *others = (expand(w, a.ndim) * a for w, a in zip(weights, values, strict=True))
    return sum(others, start=first)


def _one_network(first: Denoiser, second: Denoiser, batch: int) -> bool:
    """Whether two denoisers differ by the values of their conds [batch, ...] alone."""
    if not (isinstance(first, NetworkDenoiser) and isinstance(second, NetworkDenoiser)):
        return False
    form = lambda cond: (
        jax.tree.structure(cond),
        [(jnp.shape(a), jnp.result_type(a)) for a in jax.tree.leaves(cond)],
    )
    return (
        first.apply_fn
        == second.apply_fn  # == for a module's `apply`, a new object every time it is named
        and first.parameterization == second.parameterization
        and jax.tree.structure(first.params) == jax.tree.structure(second.params)
        and all(
            a is b
            for a, b in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True)
        )
        and form(first.cond) == form(second.cond)
        and jax.tree.structure(first.to) == jax.tree.structure(second.to)
        and all(a is b for a, b in zip(first.to or (), second.to or (), strict=True))
        and all(jnp.shape(a)[:1] == (batch,) for a in jax.tree.leaves(first.cond))
    )


def _each(denoisers: Sequence[Denoiser], x, level: Level) -> list[Prediction]:
    """The predictions of denoisers, by one call of as many times the batch for those of one
    network."""
    size, groups = x.shape[0], []
    for i, denoiser in enumerate(denoisers):
        same = [group for group in groups if _one_network(denoisers[group[0]], denoiser, size)]
        same[0].append(i) if same else groups.append([i])
    predictions = {}
    for group in groups:
        members = [denoisers[i] for i in group]
        parts = [members[0](x, level)] if len(group) == 1 else _at_once(members, x, level)
        predictions |= zip(group, parts, strict=True)
    return [predictions[i] for i in range(len(denoisers))]


def _at_once(members: Sequence[Any], x, level: Level) -> list[Prediction]:
    size, times = x.shape[0], len(members)
    repeated = lambda a: jnp.concatenate([a] * times) if jnp.ndim(a) else a
    cond = jax.tree.map(lambda *a: jnp.concatenate(a), *(member.cond for member in members))
    to = jax.tree.map(repeated, members[0].to)
    every = members[0]._replace(cond=cond, to=to)(repeated(x), Level(*map(repeated, level)))
    part = lambda i: jax.tree.map(lambda a: a[i * size : (i + 1) * size], every)
    return [part(i) for i in range(times)]
