"""Training losses: factories of functions (network, x0, eps, level, cond) -> losses [B]."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.components import component
from diffusion_jax.core.process import VARIANCES, first_log_variance, q_sample
from diffusion_jax.core.schedules import previous
from diffusion_jax.core.settings import at_least, one_of
from diffusion_jax.core.types import (
    Level,
    Loss,
    Parameterization,
    Schedule,
    Variance,
    Weighting,
    is_known_zero,
)
from diffusion_jax.denoisers import split_output, with_eps
from diffusion_jax.likelihood.variational import bound_term, mean_flat

Norm = Literal["l2", "l1"]
NORMS = {"l2": jnp.square, "l1": jnp.abs}


INFINITE = 1e15  # of weights at alpha = 0, which `Level.with_signal` makes 1e20 where they are


def _weighted(
    errors: jax.Array, weighting: Weighting, parameterization: Parameterization, level: Level
) -> jax.Array:
    """The target's squared errors [B, ...], meaned and weighted, [B]; the limit at alpha = 0.

    ValueError where the weight is infinite there, as far as the level is known on the host."""
    near, axes = level.with_signal(), max(1, jnp.ndim(level.alpha))  # of levels [B] or [B, F]
    weight, factor = weighting(near), target_factor(parameterization, near)
    if is_known_zero(level.alpha) and bool(
        jnp.any((jnp.asarray(level.alpha) == 0.0) & (weight > INFINITE * factor))
    ):
        raise ValueError("this weighting of this prediction is infinite at alpha = 0")
    losses = jnp.mean(errors, axis=tuple(range(axes, errors.ndim))) * weight / factor
    return losses if losses.ndim == 1 else mean_flat(losses)


def target_factor(parameterization: Parameterization, level: Level) -> jax.Array:
    """||error of the target||^2 / ||error of x0||^2 at a given x, of the level's shape: snr for
    eps, 1 for x0, snr + 1 for v."""
    one = jnp.ones_like(level.alpha)
    # with x held, an error of 1 in x0 is one of -alpha / sigma in eps, and every target is linear
    # in the two
    return parameterization.target(one, -level.alpha / level.sigma, level) ** 2


@component
def denoising(
    parameterization: Parameterization, norm: Norm = "l2", weighting: Weighting | None = None
) -> Loss:
    """The error of the network's output against its target at x_t: L_simple with `predictions.eps`
    (Ho et al. 2020, eq. 14).

    weighting: one of `weightings`, for l2, or None for 1. The returned loss takes x0 and eps [B,
    ...], level [B] or one a frame [B, F], cond; a learned variance, where the network has one, is
    left out.

    Args:
      norm: "l2", the mean square, or "l1", the mean absolute error, over all axes but the batch's.
    """
    one_of(get_args(Norm), norm=norm)
    if weighting is not None and norm != "l2":
        raise ValueError("a weighting is one of squared errors: it needs the l2 norm")

    def loss(network, x0, eps, level, cond=None):
        x_in, t_in = parameterization.inputs(q_sample(x0, eps, level), level)
        output, _ = split_output(network(x_in, t_in, cond), x0.shape[-1])
        errors = NORMS[norm](output - parameterization.target(x0, eps, level))
        if weighting is None:
            return mean_flat(errors)
        return _weighted(errors, weighting, parameterization, level)

    return loss


@component
def vlb(
    parameterization: Parameterization,
    schedule: Schedule,
    variance: Variance = "learned_range",
    scaled: bool = False,
    frozen_mean: bool = False,
) -> Loss:
    """L_vlb: at t, the term of the bound of the step from t to its neighbour, in bits/dim (Nichol &
    Dhariwal 2021, eq. 4).

    Args:
      variance: of a reverse step: "fixed_small", "fixed_large" or "learned_range".
      scaled: whether the term is multiplied by T, which makes the mean over uniform t an estimate
        of the whole bound.
      frozen_mean: whether the gradient reaches the network through the variance alone (section
        3.1).
    """
    one_of(VARIANCES, variance=variance)
    num_steps = schedule.num_steps
    if num_steps is None:
        raise ValueError("the variational bound of steps needs a table schedule")
    first = first_log_variance(schedule.level(np.arange(min(2, num_steps))[::-1]))

    def loss(network, x0, eps, level, cond=None):
        x_t = q_sample(x0, eps, level)
        x_in, t_in = parameterization.inputs(x_t, level)
        output, fraction = split_output(network(x_in, t_in, cond), x0.shape[-1])
        output = jax.lax.stop_gradient(output) if frozen_mean else output
        prediction = with_eps(parameterization.x0(output, x_t, level), x_t, level, fraction)
        term = bound_term(prediction, x0, x_t, previous(schedule, level), level, variance, first)
        return term * num_steps if scaled else term

    return loss


@component
def hybrid(
    parameterization: Parameterization,
    schedule: Schedule,
    coefficient: float = 0.001,
    norm: Norm = "l2",
    weighting: Weighting | None = None,
) -> Loss:
    """L_hybrid = L_simple + coefficient L_vlb, the mean's gradient stopped in L_vlb (Nichol &
    Dhariwal 2021, eq. 16).

    L_vlb is the estimate of the whole bound, T times its term at t. The network has learned
    variance. weighting: as in `denoising`.

    Args:
      coefficient: weight of L_vlb, at least 0.
      norm: of L_simple: "l2", the mean square, or "l1", the mean absolute error.
    """
    at_least(0, coefficient=coefficient)
    simple = denoising(parameterization, norm, weighting)
    variational = vlb(parameterization, schedule, scaled=True, frozen_mean=True)

    def loss(network, x0, eps, level, cond=None):
        output = None

        def once(x_in, t_in, cond):  # both losses look at the same output
            nonlocal output
            output = network(x_in, t_in, cond) if output is None else output
            return output

        return simple(once, x0, eps, level, cond) + coefficient * variational(
            once, x0, eps, level, cond
        )

    return loss


LOSSES = {"denoising": denoising, "vlb": vlb, "hybrid": hybrid}
