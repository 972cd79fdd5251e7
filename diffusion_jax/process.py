"""The forward process between any two noise levels, and the Gaussian posterior that reverses it given x0.

Everything follows from two quantities, with lambda = logsnr and s the cleaner of two levels s, t:
r = exp(lambda_t - lambda_s) and c = 1 - r = -expm1(lambda_t - lambda_s) (Kingma et al. 2021, appendix A). Neighbouring
table indices give DDPM's formulas; any other pair is what respacing needs, so there are no rewritten betas.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Level


def logsnr_drop(s: Level, t: Level) -> jax.Array:
    """lambda_t - lambda_s <= 0, from ratios, so that two near levels keep their digits; -inf where s is clean."""
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
    """x_t from the cleaner x_s, one step of the forward process, q(x_t | x_s) (Ho et al. 2020, eq. 2).

    x_s, eps: [B, ...]; s, t: scalar or [B]. mean (alpha_t / alpha_s) x_s, variance sigma_t^2 c.
    """
    s, t = s.expand(jnp.ndim(x_s)), t.expand(jnp.ndim(x_s))
    c = -jnp.expm1(logsnr_drop(s, t))
    return t.alpha / s.alpha * x_s + t.sigma * jnp.sqrt(c) * eps


def q_posterior(x0: Array, x_t: Array, s: Level, t: Level) -> tuple[jax.Array, jax.Array]:
    """Mean [B, ...] and variance (broadcasting with it) of q(x_s | x_t, x0) (Ho et al. 2020, eqs. 6 and 7).

    x0, x_t: [B, ...]; s, t: scalar or [B], s the cleaner. With s clean the mean is x0 and the variance 0.
    """
    s, t = s.expand(jnp.ndim(x_t)), t.expand(jnp.ndim(x_t))
    c = -jnp.expm1(logsnr_drop(s, t))
    # r alpha_s / alpha_t, written so that it stays finite at alpha_t = 0
    coefficient = t.alpha * s.sigma**2 / (s.alpha * t.sigma**2)
    return coefficient * x_t + s.alpha * c * x0, s.sigma**2 * c
