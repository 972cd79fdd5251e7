"""The forward process between any two noise levels, the Gaussian posterior that reverses it given
x0, and their densities.

Everything follows from two quantities, with lambda = logsnr and s the cleaner of two levels s, t: r
= exp(lambda_t - lambda_s) and c = 1 - r = -expm1(lambda_t - lambda_s) (Kingma et al. 2021, appendix
A). Neighbouring table indices give DDPM's formulas; any other pair is what respacing needs, so
there are no rewritten betas."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr

from diffusion_jax.core.settings import one_of
from diffusion_jax.core.types import Array, Level, Variance

VARIANCES = get_args(Variance)
P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """The function, in which matrix products and convolutions of float32 are of full precision.

    On accelerators their default is a pass of TF32 or bfloat16, of which a likelihood and an
    adaptive solver would measure the rounding."""

    @functools.wraps(function)
    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return precise


def logsnr_drop(s: Level, t: Level) -> jax.Array:
    """lambda_t - lambda_s <= 0, from ratios, so that two near levels keep their digits; -inf where
    s is clean."""
    alpha = jnp.log1p((t.alpha - s.alpha) / s.alpha)
    sigma = jnp.log1p((s.sigma - t.sigma) / t.sigma)
    return 2.0 * (alpha + sigma)


def q_sample(x0: Array, eps: Array, level: Level) -> jax.Array:
    """x_t = alpha x0 + sigma eps, the jump from data to a noise level (Ho et al. 2020, eq. 4).

    x0, eps: [B, ...]; level: scalar or [B].
    """
    level = level.expand(jnp.ndim(x0))
    return level.alpha * x0 + level.sigma * eps


def q_step(x_s: Array, eps: Array, s: Level, t: Level) -> jax.Array:
    """x_t from the cleaner x_s, one step of the forward process, q(x_t | x_s) (Ho et al. 2020, eq.
    2).

    x_s, eps: [B, ...]; s, t: scalar or [B]. mean (alpha_t / alpha_s) x_s, variance sigma_t^2 c.
    """
    s, t = s.expand(jnp.ndim(x_s)), t.expand(jnp.ndim(x_s))
    c = -jnp.expm1(logsnr_drop(s, t))
    return t.alpha / s.alpha * x_s + t.sigma * jnp.sqrt(c) * eps


def q_posterior(x0: Array, x_t: Array, s: Level, t: Level) -> tuple[jax.Array, jax.Array]:
    """Mean [B, ...] and variance (broadcasting with it) of q(x_s | x_t, x0) (Ho et al. 2020, eqs. 6
    and 7).

    x0, x_t: [B, ...]; s, t: scalar or [B], s the cleaner. With s clean the mean is x0 and the
    variance 0."""
    s, t = s.expand(jnp.ndim(x_t)), t.expand(jnp.ndim(x_t))
    c = -jnp.expm1(logsnr_drop(s, t))
    # r alpha_s / alpha_t, written so that it stays finite at alpha_t = 0
    coefficient = t.alpha * s.sigma**2 / (s.alpha * t.sigma**2)
    return coefficient * x_t + s.alpha * c * x0, s.sigma**2 * c


def reverse_log_variance(
    variance: str, s: Level, t: Level, fraction: Array | None = None, first: Any = -np.inf
) -> jax.Array:
    """log of the variance of p(x_s | x_t), which shapes like s and t, or like `fraction`.

    variance: "fixed_small", the posterior's sigma_s^2 c (beta-tilde), right for data that are one
    point; "fixed_large", sigma_t^2 c (beta), right for Gaussian data (Ho et al. 2020, section 3.2);
    "learned_range", between the two in the log: fraction log beta + (1 - fraction) log beta-tilde
    (Nichol & Dhariwal 2021, eq. 15), fraction in [0, 1]. first: what stands for both fixed ones
    where s is clean, whose beta-tilde is 0: `first_log_variance`."""
    one_of(VARIANCES, variance=variance)
    clean = s.sigma == 0.0
    log_c = jnp.log(-jnp.expm1(logsnr_drop(s, t)))
    small = jnp.where(clean, first, 2.0 * jnp.log(jnp.where(clean, 1.0, s.sigma)) + log_c)
    large = 2.0 * jnp.log(t.sigma) + log_c
    if variance == "fixed_small":
        return small
    if variance == "fixed_large":
        return jnp.where(clean, first, large)
    if fraction is None:
        raise ValueError(
            "learned_range needs a network with learned variance: twice the output channels"
        )
    fraction = jnp.asarray(fraction)
    return fraction * large + (1.0 - fraction) * small


def first_log_variance(grid: Level) -> jax.Array:
    """log beta-tilde of the grid's last but one hop, which stands for that of the last, log 0 (Ho
    et al. 2020's code).

    grid: levels [N], noisy to clean. A grid of one level has its beta instead. Clamping at 1e-20
    would ruin the first step of a learned range."""
    pick = lambda i: Level(*(jnp.asarray(a)[i] for a in grid))
    if len(grid.t) == 1:
        return 2.0 * jnp.log(pick(0).sigma)
    return reverse_log_variance("fixed_small", pick(-1), pick(-2))


def normal_kl(mean1: Any, log_variance1: Any, mean2: Any, log_variance2: Any) -> jax.Array:
    """KL(N(mean1, exp log_variance1) || N(mean2, exp log_variance2)) in nats, element by
    element."""
    difference = log_variance1 - log_variance2
    return 0.5 * (
        jnp.expm1(difference) - difference + (mean1 - mean2) ** 2 * jnp.exp(-log_variance2)
    )


NODES, WEIGHTS = np.polynomial.legendre.leggauss(5)


def discretized_gaussian_log_prob(x: Array, mean: Array, log_scale: Array) -> jax.Array:
    """log P(x) in nats, element by element, of 8-bit values x = -1, -1 + 2/255, ..., 1 under
    N(mean, exp(log_scale)^2).

    The integral of the density over x +- 1/255, the first and the last bin open to infinity (Ho et
    al. 2020, eq. 13). It is computed in the log, so that neither a tiny nor a large scale saturates
    in float32: by Gauss-Legendre quadrature where the density is nearly even over the bin, else by
    the difference of two log-CDFs, in the tail where they are small."""
    x, mean, scale = jnp.broadcast_arrays(x, mean, jnp.exp(log_scale))
    k = 2.0 * jnp.round((x + 1.0) * 127.5) - 255.0
    low, high = (
        ((k - 1.0) / 255.0 - mean) / scale,
        ((k + 1.0) / 255.0 - mean) / scale,
    )  # neighbours share an edge exactly

    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    even = (half < 0.5) & (jnp.abs(middle) * half < 1.0)
    m, h = jnp.where(even, middle, 0.0)[..., None], jnp.where(even, half, 0.1)[..., None]
    integral = jnp.sum(0.5 * WEIGHTS * jnp.exp(-h * NODES * (m + 0.5 * h * NODES)), axis=-1)
    quadrature = (
        -0.5 * m[..., 0] ** 2
        - 0.5 * np.log(2.0 * np.pi)
        + jnp.log(2.0 * h[..., 0])
        + jnp.log(integral)
    )

    right = low > 0  # mirrored, so that the two CDFs are those of the small tail
    a, b = jnp.where(right, -high, low), jnp.where(right, -low, high)
    b = jnp.where(even, 0.0, b)  # keeps the unused branch, and so the gradient, finite
    a = jnp.where(even, -1.0, a)
    log_b = log_ndtr(b)
    difference = log_b + jnp.log(-jnp.expm1(log_ndtr(a) - log_b))

    inside = jnp.where(even, quadrature, difference)
    return jnp.where(x < -0.999, log_ndtr(high), jnp.where(x > 0.999, log_ndtr(-low), inside))
