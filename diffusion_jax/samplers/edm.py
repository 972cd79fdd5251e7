"""Heun's method, of order 2: EDM's algorithms 1 and 2, the form for rectified flows, and Euler's in
place of Heun's."""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.grids import at_logsnr
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import Denoiser, Level, Sampler, Schedule, expand

MAX_GAMMA = 2.0**0.5 - 1.0


def _euler_step(denoiser: Denoiser, x, t: Level, s: Level):
    """From t to s, where x0 and eps stay: the step of `euler`."""
    here = denoiser(x, t)
    return q_sample(here.x0, here.eps, s)


def heun_step(denoiser: Denoiser, x, t: Level, s: Level):
    """From t to s in x / alpha over sigma / alpha, where the slope is eps."""
    first = denoiser(x, t)
    s_, t_ = s.expand(x.ndim), t.expand(x.ndim)
    euler = q_sample(first.x0, first.eps, s)
    second = denoiser(euler, s)
    return euler + 0.5 * (s_.sigma - s_.alpha / t_.alpha * t_.sigma) * (second.eps - first.eps)


@component
def heun() -> Sampler:
    """EDM's deterministic sampler, Heun's method in x / alpha over sigma / alpha (Karras et al.
    2022, alg. 1); of order 2.

    Two calls a step. Wants a grid that is fine where sigma / alpha is large, such as
    `grids.karras`; alpha must not be 0."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        return heun_step(denoiser, x, t, s), state

    return Sampler(lambda x, level: (), step)


@component
def heun_flow() -> Sampler:
    """Heun's method for dx = x0 d alpha + eps d sigma, the velocity of a rectified flow (Liu et al.
    2022, eq. 1); of order 2.

    Two calls a step. Between any two levels, alpha = 0 and uniform grids included; with alpha = 1
    it is EDM's."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        first = denoiser(x, t)
        s_, t_ = s.expand(x.ndim), t.expand(x.ndim)
        euler = q_sample(first.x0, first.eps, s)
        second = denoiser(euler, s)
        of_x0 = (s_.alpha - t_.alpha) * (second.x0 - first.x0)
        return euler + 0.5 * (of_x0 + (s_.sigma - t_.sigma) * (second.eps - first.eps)), state

    return Sampler(lambda x, level: (), step)


def _share(gamma: float, churn: float | None, grid: Level | None) -> float:
    """Gamma, or what S_churn makes of it on that grid."""
    if churn is None:
        return gamma
    at_least(0, churn=churn)
    if grid is None:
        raise ValueError("churn is divided by the length of the grid: give it, or gamma")
    return min(churn / len(grid.t), MAX_GAMMA)


def _churning(
    onward: Callable,
    gamma: float,
    noise_scale: float,
    least: float,
    most: float,
    schedule: Schedule | None,
) -> Sampler:
    """A sampler that raises the level, adding noise, and goes onward(denoiser, x, raised, s) from
    there. The other arguments are those of `edm_churn`."""
    if not 0.0 <= gamma <= MAX_GAMMA + 1e-6:
        raise ValueError(f"gamma must lie in [0, {MAX_GAMMA:.4f}], not {gamma}")
    above(0, noise_scale=noise_scale)
    if not 0.0 <= least <= most:
        raise ValueError(f"least and most must be at least 0 and not fall, not {least} and {most}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        u = t.sigma / t.alpha
        raised = u * (1.0 + jnp.where((u >= least) & (u <= most), gamma, 0.0))
        if schedule is None:
            noisier = Level(t.t, t.alpha, t.alpha * raised)
        else:
            top = schedule.level(schedule.t_max)
            raised = jnp.where(
                raised * top.alpha < top.sigma, raised, u
            )  # above the noisiest level there is none
            noisier = at_logsnr(schedule, -2.0 * jnp.log(raised))
            noisier = Level(*(jnp.where(raised > u, a, b) for a, b in zip(noisier, t, strict=True)))
        added = expand(jnp.sqrt((raised - u) * (raised + u)), x.ndim)
        y = x / t.expand(x.ndim).alpha + noise_scale * added * noise.normal(keys, x.shape[1:])
        return onward(denoiser, noisier.expand(x.ndim).alpha * y, noisier, s), state

    return Sampler(lambda x, level: (), step, draws_noise=True)


@component
def edm_churn(
    gamma: float = 0.1,
    noise_scale: float = 1.0,
    least: float = 0.05,
    most: float = 50.0,
    schedule: Schedule | None = None,
    churn: float | None = None,
    grid: Level | None = None,
) -> Sampler:
    """EDM's stochastic sampler: adds noise, then takes a Heun step (Karras et al. 2022, algorithm
    2); of no order.

    schedule: of the network, which embeds the t of the raised level; without it that level keeps t.
    grid: the sampling grid, whose length N `churn` is divided by.

    Args:
      gamma: share by which a step raises sigma / alpha, from 0 to sqrt(2) - 1; at 0 it is `heun`.
      noise_scale: scale of the added noise, above 0, the paper's S_noise; exact at 1. The paper's
        1.003 to 1.007 make up for detail that its networks lose.
      least: the least sigma / alpha at which noise is added, at least 0; the paper's S_tmin.
      most: the largest sigma / alpha at which noise is added, at least `least`; S_tmax.
      churn: the paper's S_churn, at least 0; with a grid, gamma is min(churn / N, sqrt(2) - 1).
    """
    gamma = _share(gamma, churn, grid)
    if grid is not None:  # equal gammas are one sampler
        return edm_churn(gamma, noise_scale, least, most, schedule)
    return _churning(heun_step, gamma, noise_scale, least, most, schedule)


@component
def euler_churn(
    gamma: float = 0.1,
    noise_scale: float = 1.0,
    least: float = 0.05,
    most: float = 50.0,
    schedule: Schedule | None = None,
    churn: float | None = None,
    grid: Level | None = None,
) -> Sampler:
    """Adds noise as `edm_churn`, then takes an Euler step (Karras et al. 2022, algorithm 2, without
    its correction), one call a step; of no order.

    schedule, grid: as in `edm_churn`.

    Args:
      gamma: share by which a step raises sigma / alpha, from 0 to sqrt(2) - 1; at 0 it is `euler`.
      noise_scale: scale of the added noise, above 0, the paper's S_noise; exact at 1.
      least: the least sigma / alpha at which noise is added, at least 0; the paper's S_tmin.
      most: the largest sigma / alpha at which noise is added, at least `least`; S_tmax.
      churn: the paper's S_churn, at least 0; with a grid, gamma is min(churn / N, sqrt(2) - 1).
    """
    gamma = _share(gamma, churn, grid)
    if grid is not None:
        return euler_churn(gamma, noise_scale, least, most, schedule)
    return _churning(_euler_step, gamma, noise_scale, least, most, schedule)


SAMPLERS = {
    "heun": heun,
    "heun_flow": heun_flow,
    "edm_churn": edm_churn,
    "euler_churn": euler_churn,
}
