"""Samplers of order 1: DDPM's ancestral sampling, DDIM, Euler's method, Euler-Maruyama."""

import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.process import VARIANCES, logsnr_drop, q_posterior, reverse_log_variance
from diffusion_jax.core.settings import inside, one_of
from diffusion_jax.core.types import Denoiser, Level, Sampler, Variance


@component
def ancestral(variance: Variance = "fixed_small") -> Sampler:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2), between any two levels; of order 1.

    Args:
      variance: of a step: "fixed_small", "fixed_large", or "learned_range" for a network with
        learned variance (Nichol & Dhariwal 2021, section 3.1); see `process.reverse_log_variance`.
    """
    one_of(VARIANCES, variance=variance)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        prediction = denoiser(x, t)
        mean, _ = q_posterior(prediction.x0, x, s, t)
        log_variance = reverse_log_variance(
            variance, s.expand(x.ndim), t.expand(x.ndim), prediction.aux
        )
        return mean + jnp.exp(0.5 * log_variance) * noise.normal(keys, x.shape[1:]), state

    return Sampler(lambda x, level: (), step, draws_noise=True)


@component
def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, eqs. 12 and 16), between any two levels; of order 1, deterministic at
    eta = 0.

    Args:
      eta: scale of the noise's standard deviation, from 0 to 1: 0 for the probability-flow ODE, 1
        for DDPM's fixed-small variance.
    """
    inside(0, 1, eta=eta)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        prediction = denoiser(x, t)
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        if eta == 0.0:
            return s.alpha * prediction.x0 + s.sigma * prediction.eps, state
        noise_share = -jnp.expm1(logsnr_drop(s, t)) * eta**2
        x = s.alpha * prediction.x0 + s.sigma * jnp.sqrt(1.0 - noise_share) * prediction.eps
        return x + s.sigma * jnp.sqrt(noise_share) * noise.normal(keys, x.shape[1:]), state

    return Sampler(lambda x, level: (), step, draws_noise=eta > 0.0)


@component
def euler() -> Sampler:
    """Euler's method for the probability-flow ODE, which is DDIM; of order 1 (Karras et al. 2022,
    eq. 4).

    In x / alpha over sigma / alpha, as in sigma with alpha = 1 and as in t of a rectified flow, the
    ODE's slope is constant while x0 and eps are: Euler's step goes to alpha_s x0 + sigma_s eps."""
    return ddim(0.0)


@component
def euler_maruyama() -> Sampler:
    """Euler-Maruyama for the reverse SDE dx = (f x - g^2 score) dt + g dw (Song et al. 2021b, eq.
    6); weakly of order 1.

    Of the coefficients the integrals over the step are taken, which need no t: of f, log(alpha_t /
    alpha_s), and of g^2 = d sigma^2 / dt - 2 f sigma^2 by the trapezoidal rule."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        eps = denoiser(x, t).eps
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        growth = jnp.log(s.alpha / t.alpha)
        g2 = t.sigma**2 - s.sigma**2 + (t.sigma**2 + s.sigma**2) * growth
        x = x + growth * x - g2 / t.sigma * eps
        return x + jnp.sqrt(g2) * noise.normal(keys, x.shape[1:]), state

    return Sampler(lambda x, level: (), step, draws_noise=True)


SAMPLERS = {"ancestral": ancestral, "ddim": ddim, "euler": euler, "euler_maruyama": euler_maruyama}
