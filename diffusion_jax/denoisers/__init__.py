"""Denoisers: functions (x, level) -> Prediction, and transforms from denoiser to denoiser.

A sampler's step receives one and knows nothing of networks, guidance or clipping.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import (
    ApplyFn,
    Denoiser,
    Level,
    Parameterization,
    Prediction,
    PyTree,
    expand,
)


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


class NetworkDenoiser(NamedTuple):
    """The denoiser of a network, what `make_denoiser` returns: its four arguments, callable as a
    Denoiser.

    Of two with the same apply_fn, params and parameterization guidance makes one call. A pytree,
    but with functions among its leaves: make it inside a function to be jitted, do not hand it to
    one."""

    apply_fn: ApplyFn
    params: PyTree
    parameterization: Parameterization
    cond: PyTree = None

    def __call__(self, x, level: Level) -> Prediction:
        batched = Level(*(jnp.broadcast_to(a, x.shape[:1]) for a in level))
        x_in, t_in = self.parameterization.inputs(x, batched)
        output, aux = split_output(self.apply_fn(self.params, x_in, t_in, self.cond), x.shape[-1])
        return with_eps(self.parameterization.x0(output, x, batched), x, batched, aux)


def make_denoiser(
    apply_fn: ApplyFn, params: PyTree, parameterization: Parameterization, cond: PyTree = None
) -> NetworkDenoiser:
    """The denoiser of a network.

    apply_fn: (params, x_in [B, ...], t_in [B], cond) -> output [B, ..., C], or 2C channels with
    learned variance, which then fills `Prediction.aux`. cond: a pytree with a leading axis B, such
    as labels [B], or None."""
    return NetworkDenoiser(apply_fn, params, parameterization, cond)


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clips x0 to the data's range and recomputes eps from it (Ho et al. 2020's samplers; DDIM
    needs the eps, too)."""

    def clipped(x, level: Level) -> Prediction:
        prediction = denoiser(x, level)
        return with_eps(jnp.clip(prediction.x0, low, high), x, level, prediction.aux)

    return clipped


def dynamic_threshold(
    denoiser: Denoiser, percentile: float = 0.995, least: float = 1.0
) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): x0 clipped to [-s, s] and divided by
    s; eps recomputed.

    s, one an example, is the `percentile` quantile of its |x0|, but at least `least`. ValueError
    unless percentile is in [0, 1] and least above 0."""
    if not 0.0 <= percentile <= 1.0 or not least > 0.0:
        raise ValueError(
            f"percentile must lie in [0, 1] and least above 0, not {percentile} and {least}"
        )

    def thresholded(x, level: Level) -> Prediction:
        prediction = denoiser(x, level)
        size = jnp.quantile(jnp.abs(prediction.x0).reshape(x.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(size, least), x.ndim)
        return with_eps(jnp.clip(prediction.x0, -s, s) / s, x, level, prediction.aux)

    return thresholded


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    w,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """Classifier-free guidance: eps = (1 + w) eps_c - w eps_u (Ho & Salimans 2022, eq. 6); w = 0 is
    no guidance.

    w: scalar or [B]. x0 follows by the same weights, since x = alpha x0 + sigma eps is linear.
    `aux` is the conditional one's. Two NetworkDenoisers of one network are evaluated in one call of
    twice the batch, all others in two calls.

    interval: guidance acts where low < sigma / alpha <= high alone (Kynkäänniemi et al. 2024).
    rescale, phi in [0, 1]: x0 is multiplied by phi std(x0_c) / std(x0) + 1 - phi, std over each
    example, and eps recomputed (Lin et al. 2023, section 3.4, there of the network's output; x0
    makes it independent of the parameterization). ValueError for an interval that is none and a
    rescale out of its range."""
    if interval is not None and not 0.0 <= interval[0] < interval[1]:
        raise ValueError(f"an interval is 0 <= low < high, not {interval}")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale must lie in [0, 1], not {rescale}")

    def guided(x, level: Level) -> Prediction:
        c, u = _both(conditional, unconditional, x, level)
        g = jnp.asarray(w)
        if interval is not None:
            ratio = jnp.asarray(level.sigma) / level.alpha
            g = jnp.where((interval[0] < ratio) & (ratio <= interval[1]), g, 0.0)
        g = expand(g, x.ndim)
        x0, eps = (1 + g) * c.x0 - g * u.x0, (1 + g) * c.eps - g * u.eps
        if rescale == 0.0:
            return Prediction(x0, eps, c.aux)
        axes = tuple(range(1, x.ndim))
        std = jnp.std(x0, axes, keepdims=True)
        change = (
            jnp.where(
                std > 0, jnp.std(c.x0, axes, keepdims=True) / jnp.where(std > 0, std, 1.0), 1.0
            )
            - 1.0
        )
        return with_eps((1.0 + rescale * change) * x0, x, level, c.aux)

    return guided


def autoguidance(
    denoiser: Denoiser,
    weaker: Denoiser,
    w,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Denoiser:
    """Autoguidance: D = D_weaker + (1 + w) (D - D_weaker), away from a weaker model (Karras et al.
    2024, eq. 3, whose w is 1 + w here).

    weaker: of the same data and conditions, smaller or less trained. The other arguments are those
    of `classifier_free`."""
    return classifier_free(denoiser, weaker, w, interval, rescale)


def classifier_guided(
    denoiser: Denoiser, log_prob: Callable[[Any, Level], jax.Array], scale: Any = 1.0
) -> Denoiser:
    """Classifier guidance: eps - sigma scale grad_x log p(y | x) (Dhariwal & Nichol 2021, algorithm
    2; Song et al. 2021).

    log_prob: (x [B, ...], level) -> [B], log p(y | x) of each example's own noisy x. scale: scalar
    or [B]. x0 follows from eps, which needs alpha > 0; `aux` stays."""

    def guided(x, level: Level) -> Prediction:
        prediction = denoiser(x, level)
        gradient = jax.grad(lambda x: jnp.sum(log_prob(x, level)))(x)
        level = level.expand(x.ndim)
        eps = prediction.eps - level.sigma * expand(scale, x.ndim) * gradient
        return Prediction((x - level.sigma * eps) / level.alpha, eps, prediction.aux)

    return guided


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
        and all(jnp.shape(a)[:1] == (batch,) for a in jax.tree.leaves(first.cond))
    )


def _both(first: Denoiser, second: Denoiser, x, level: Level) -> tuple[Prediction, Prediction]:
    """The predictions of two denoisers, by one call of twice the batch where they are one
    network."""
    size = x.shape[0]
    if not _one_network(first, second, size):
        return first(x, level), second(x, level)
    twice = lambda a: jnp.concatenate([a, a]) if jnp.ndim(a) else a
    cond = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first.cond, second.cond)
    both = first._replace(cond=cond)(twice(x), Level(*map(twice, level)))
    return jax.tree.map(lambda a: a[:size], both), jax.tree.map(lambda a: a[size:], both)
