"""Ancestral samplers: a step of the probability-flow ODE to a level cleaner than the next one, and
noise up to it, in y = x / alpha over u = sigma / alpha.

Of the variance of y's noise at the next level the fresh one is the share eta^2 (1 - u_s^2 / u_t^2),
with eta = 1 that of DDPM's posterior. An exact step of the ODE makes an exact step of the
marginals, so the order is the ODE method's."""

import jax
import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.grids import between
from diffusion_jax.core.process import logsnr_drop, q_sample
from diffusion_jax.core.settings import inside
from diffusion_jax.core.types import Denoiser, Level, Sampler, Schedule
from diffusion_jax.samplers.first_order import ddim


def _split(t: Level, s: Level, eta: float) -> tuple[Level, jax.Array]:
    """(the level to which the ODE goes, of s's alpha; the deviation of y's noise from there to
    s)."""
    drop = logsnr_drop(s, t)
    left = 1.0 - eta**2 + eta**2 * jnp.exp(drop)  # above 0 also where t is all noise
    down = Level(s.t, s.alpha, s.sigma * jnp.sqrt(left))
    return down, eta * s.sigma / s.alpha * jnp.sqrt(-jnp.expm1(drop))


def _noised(keys, y, s: Level, up, eta: float):
    """x at s: y with noise of deviation `up`."""
    if eta > 0.0:
        y = y + up * noise.normal(keys, y.shape[1:])
    return s.alpha * y


@component
def euler_ancestral(eta: float = 1.0) -> Sampler:
    """Euler's method with ancestral noise, which is DDIM of that eta (Song et al. 2021, eqs. 12 and
    16); of order 1.

    Args:
      eta: scale of the noise's deviation, from 0, which is `euler`, to 1, which is `ancestral`.
    """
    return ddim(eta)


@component
def dpm2_ancestral(eta: float = 1.0, schedule: Schedule | None = None) -> Sampler:
    """The midpoint method in u, at the level of DPM-Solver-2 (Lu et al. 2022a), with ancestral
    noise, two calls a step; weakly of order 2.

    The midpoint is the geometric mean of the two u, that of DPM-Solver-2, but Euler's steps are in
    u. With eta = 1 it is the next level itself. schedule: as in `dpm_solver_2`.

    Args:
      eta: scale of the noise's deviation, from 0, which is `dpm2`, to 1.
    """
    inside(0, 1, eta=eta)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        down, up = _split(t, s, eta)
        middle = between(t, down, 0.5, schedule)
        first = denoiser(x, t)
        second = denoiser(q_sample(first.x0, first.eps, middle), middle)
        down, up = down.expand(x.ndim), Level(t.t, t.alpha, up).expand(x.ndim).sigma
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        u, u_down = t.sigma / t.alpha, down.sigma / down.alpha
        y = first.x0 + u_down * first.eps + (u_down - u) * (second.eps - first.eps)
        return _noised(keys, y, s, up, eta), state

    return Sampler(lambda x, level: (), step, draws_noise=eta > 0.0)


@component
def dpm2(schedule: Schedule | None = None) -> Sampler:
    """The midpoint method in x / alpha over sigma / alpha, at the level of DPM-Solver-2 (Lu et al.
    2022a), two calls a step; of order 2.

    `dpm_solver_2` has the same levels and integrates in log-SNR. Wants a grid as `heun`'s.
    schedule: as in `dpm_solver_2`.
    """
    return dpm2_ancestral(0.0, schedule)


@component
def dpmpp_2s_ancestral(eta: float = 1.0, schedule: Schedule | None = None) -> Sampler:
    """DPM-Solver++(2S) with ancestral noise (Lu et al. 2022b, algorithm 1, r = 1/2), two calls a
    step; weakly of order 2.

    schedule: as in `dpm_solver_2`.

    Args:
      eta: scale of the noise's deviation, from 0, which is DPM-Solver++(2S), to 1.
    """
    inside(0, 1, eta=eta)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        down, up = _split(t, s, eta)
        middle = between(t, down, 0.5, schedule)
        first = denoiser(x, t)
        x0 = denoiser(q_sample(first.x0, first.eps, middle), middle).x0
        y = _toward(x, x0, t, down)
        up = Level(t.t, t.alpha, up).expand(x.ndim).sigma
        return _noised(keys, y, s.expand(x.ndim), up, eta), state

    return Sampler(lambda x, level: (), step, draws_noise=eta > 0.0)


def _toward(x, x0, t: Level, down: Level):
    """y at the cleaner level, where x0 stays on the way."""
    t, down = t.expand(x.ndim), down.expand(x.ndim)
    kept = down.sigma / (down.alpha * t.sigma)
    return kept * x + (1.0 - kept * t.alpha) * x0


@component
def dpmpp_sde(eta: float = 1.0, r: float = 0.5, schedule: Schedule | None = None) -> Sampler:
    """DPM++ SDE: DPM-Solver++(2S) whose middle is reached by an ancestral step, too, two calls a
    step (after Lu et al. 2022b, algorithm 1); weakly of order 2.

    The noise up to the middle and that up to the end are increments of one Brownian motion over u.
    The order is that of the moments of Gaussian data. schedule: as in `dpm_solver_2`.

    Args:
      eta: scale of the noise's deviation, from 0, which is DPM-Solver++(2S), to 1.
      r: where the middle lies in the growth of log(alpha / sigma), above 0 and below 1.
    """
    inside(0, 1, eta=eta)
    if not 0.0 < r < 1.0:
        raise ValueError(f"r must lie between 0 and 1, not {r}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        middle = between(t, s, r, schedule)
        first = denoiser(x, t)
        (near, up_near), (down, up) = _split(t, middle, eta), _split(t, s, eta)
        wide = lambda a: Level(t.t, t.alpha, a).expand(x.ndim).sigma
        y = _toward(x, first.x0, t, near)
        drawn = 0.0
        if eta > 0.0:
            start, halt, end = (wide(level.sigma / level.alpha) for level in (t, middle, s))
            parts = [noise.normal(noise.fold_in(keys, i), x.shape[1:]) for i in range(2)]
            y = y + wide(up_near) * parts[0]
            drawn = jnp.sqrt(start - halt) * parts[0] + jnp.sqrt(halt - end) * parts[1]
            drawn = drawn / jnp.sqrt(start - end)
        second = denoiser(middle.expand(x.ndim).alpha * y, middle)
        x0 = first.x0 + (second.x0 - first.x0) / (2.0 * r)
        y = _toward(x, x0, t, down) + wide(up) * drawn
        return s.expand(x.ndim).alpha * y, state

    return Sampler(lambda x, level: (), step, draws_noise=eta > 0.0)


SAMPLERS = {
    "euler_ancestral": euler_ancestral,
    "dpm2": dpm2,
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_sde": dpmpp_sde,
}
