"""Langevin dynamics: as a corrector after a predictor, and alone over falling noise levels.

Its steps are those of the papers with the norms of noise and score at their expectations, sqrt(D)
and sqrt(D) / sigma, so that an example's step does not depend on its batch."""

import jax
import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import Denoiser, Level, Sampler
from diffusion_jax.samplers.first_order import ancestral


def _langevin(keys, denoiser: Denoiser, x, level: Level, share: float, count: int):
    """`count` steps x + e score + sqrt(2 e) z at a level, e = share sigma^2 and the score -eps /
    sigma."""
    sigma = level.expand(x.ndim).sigma

    def body(i, x):
        z = noise.normal(noise.fold_in(keys, i), x.shape[1:])
        return (x + sigma * (jnp.sqrt(2.0 * share) * z - share * denoiser(x, level).eps)).astype(
            x.dtype
        )

    return jax.lax.fori_loop(0, count, body, x)


@component
def predictor_corrector(
    snr: float = 0.16, steps: int = 1, predictor: Sampler | None = None
) -> Sampler:
    """A predictor, then Langevin steps at the level reached (Song et al. 2021b, section 4.2); of no
    order.

    predictor: by default `ancestral("fixed_large")`, which is the paper's reverse diffusion where
    alpha = 1.

    Args:
      snr: r, the signal-to-noise ratio of a Langevin step, whose size is 2 (r sigma)^2; above 0.
      steps: Langevin steps a level, one call each, at least 1.
    """
    above(0, snr=snr)
    at_least(1, steps=steps)
    predictor = ancestral("fixed_large") if predictor is None else predictor

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        x, state = predictor.step(noise.fold_in(keys, 0), denoiser, x, state, t, s)
        return _langevin(noise.fold_in(keys, 1), denoiser, x, s, 2.0 * snr**2, steps), state

    return Sampler(predictor.init, step, draws_noise=True)


@component
def annealed_langevin(size: float = 0.2, steps: int = 10) -> Sampler:
    """Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1): at every level `steps` Langevin
    steps; of no order.

    Neighbouring levels must be so near that these steps make up for the growth of the noise: at the
    defaults, less than three apart in sigma / alpha.

    Args:
      size: epsilon / sigma_L^2 of the paper, in whose steps it is halved; above 0.
      steps: Langevin steps a level, one call each, at least 1.
    """
    above(0, size=size)
    at_least(1, steps=steps)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        x = x * (s.expand(x.ndim).alpha / t.expand(x.ndim).alpha)
        return _langevin(keys, denoiser, x, s, size / 2.0, steps), state

    return Sampler(lambda x, level: (), step, draws_noise=True)


SAMPLERS = {"predictor_corrector": predictor_corrector, "annealed_langevin": annealed_langevin}
