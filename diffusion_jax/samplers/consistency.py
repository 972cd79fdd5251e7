"""Samplers of consistency models, whose x0 is the end of the path that x lies on: they go there,
and back to a cleaner level than they came from."""

import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import inside
from diffusion_jax.core.types import Denoiser, Level, Sampler, Schedule, expand


@component
def consistency() -> Sampler:
    """Multistep consistency sampling, LCM's too: x0, and new noise to the next level (Song et al.
    2023, algorithm 1); of no order.

    The paper's end at sigma = epsilon is at 0 here. A diffusion model's x0 is a mean, so that it is
    for consistency models."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        x0, s = denoiser(x, t).x0, s.expand(x.ndim)
        return s.alpha * x0 + s.sigma * noise.normal(keys, x.shape[1:]), state

    return Sampler(lambda x, level: (), step, draws_noise=True)


@component
def tcd(gamma: float = 0.3, schedule: Schedule | None = None) -> Sampler:
    """Strategic stochastic sampling of trajectory consistency models: along the path to (1 - gamma)
    times the next t, and new noise from there to it (Zheng et al. 2024, section 3); of no order.

    schedule: of the network. Without it sigma / alpha, in place of t, is multiplied by 1 - gamma.

    Args:
      gamma: from 0, DDIM, to 1, where it is `consistency` but for what noise the schedule has at
        t = 0.
    """
    inside(0, 1, gamma=gamma)

    def kept(s: Level):
        """The share of the path's own noise in that of level s."""
        if schedule is None:
            return jnp.full_like(s.sigma, 1.0 - gamma)
        cleaner = schedule.level((1.0 - gamma) * jnp.maximum(jnp.asarray(s.t), schedule.t_min))
        return jnp.minimum(cleaner.sigma / cleaner.alpha * s.alpha / s.sigma, 1.0)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        prediction, share = denoiser(x, t), expand(kept(s), x.ndim)
        s = s.expand(x.ndim)
        eps = share * prediction.eps
        if gamma > 0.0:
            eps = eps + jnp.sqrt(1.0 - share**2) * noise.normal(keys, x.shape[1:])
        return s.alpha * prediction.x0 + s.sigma * eps, state

    return Sampler(lambda x, level: (), step, draws_noise=gamma > 0.0)


SAMPLERS = {"consistency": consistency, "tcd": tcd}
