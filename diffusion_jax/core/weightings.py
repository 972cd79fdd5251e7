"""Loss weights: factories of functions Level -> the weight of ||x0 - predicted x0||^2.

Written for the error of x0, they hold for every parameterization: `losses.denoising` divides by the
factor between the error of its target and that of x0. Min-SNR, say, becomes min(snr, gamma) / snr
for eps and min(snr, gamma) / (snr + 1) for v. None of them, the default of the losses, weighs the
error of the target by 1 (Ho et al. 2020's L_simple with eps)."""

import jax.numpy as jnp

from diffusion_jax.core.components import component
from diffusion_jax.core.settings import above, at_least, inside
from diffusion_jax.core.types import Level, Weighting


def snr(level: Level):
    return (level.alpha / level.sigma) ** 2


@component
def simple() -> Weighting:
    """snr, the weight of L_simple: 1 for the error of eps, whatever the network predicts (Ho et al.
    2020, eq. 14)."""
    return snr


@component
def x0() -> Weighting:
    """1 for the error of x0 itself."""
    return lambda level: jnp.ones_like(level.alpha)


@component
def v() -> Weighting:
    """snr + 1, which is 1 for the error of v (Salimans & Ho 2022, section 4, "SNR+1")."""
    return lambda level: snr(level) + 1.0


@component
def flow(least: float = 0.0) -> Weighting:
    """(sqrt(snr) + 1)^2, which is 1 for the error of the straight path's velocity eps - x0: with a
    network that predicts x0 it is JiT's loss (Li & He 2025).

    At a given x, an error of 1 in x0 is one of -alpha / sigma in eps, hence one of -(alpha + sigma)
    / sigma in the velocity; on rectified flow, of -1 / t.

    Args:
      least: what sigma / (alpha + sigma), the t of rectified flow, is at least taken for, at least
        0 and at most 1; JiT's is 0.05.
    """
    inside(0, 1, least=least)
    return lambda level: 1.0 / jnp.maximum(level.sigma / (level.alpha + level.sigma), least) ** 2


@component
def truncated_snr() -> Weighting:
    """max(snr, 1) (Salimans & Ho 2022, section 4)."""
    return lambda level: jnp.maximum(snr(level), 1.0)


@component
def min_snr(gamma: float = 5.0) -> Weighting:
    """min(snr, gamma) (Hang et al. 2023, eq. 8).

    Args:
      gamma: the largest weight, above 0.
    """
    above(0, gamma=gamma)
    return lambda level: jnp.minimum(snr(level), gamma)


@component
def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """snr / (k + snr)^gamma, L_simple's weight with less of it where little noise is (Choi et al.
    2022, eq. 8).

    Args:
      gamma: how much less, at least 0; at 0 it is L_simple's weight.
      k: the SNR from which on it is less, above 0.
    """
    at_least(0, gamma=gamma)
    above(0, k=k)
    return lambda level: snr(level) / (k + snr(level)) ** gamma


@component
def edm(sigma_data: float = 0.5) -> Weighting:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2, sigma the noise over the signal (Karras et
    al. 2022, table 1).

    Args:
      sigma_data: the data's standard deviation, above 0.
    """
    above(0, sigma_data=sigma_data)
    # both sides of the fraction times alpha^2, so that it is finite at alpha = 0
    return lambda level: (
        (level.sigma**2 + (level.alpha * sigma_data) ** 2) / (level.sigma * sigma_data) ** 2
    )


WEIGHTINGS = {
    "simple": simple,
    "x0": x0,
    "v": v,
    "flow": flow,
    "truncated_snr": truncated_snr,
    "min_snr": min_snr,
    "p2": p2,
    "edm": edm,
}
