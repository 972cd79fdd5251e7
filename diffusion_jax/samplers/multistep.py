"""Multi-step methods in half the log-SNR, which remember earlier predictions: DPM-Solver++ and
UniPC.

With h the growth of log(alpha / sigma) from t to s, the ODE's solution is x_s = (sigma_s / sigma_t)
x + alpha_s times the integral of e^(tau - h) x0 over tau from 0 to h (Lu et al. 2022b, proposition
4.1); the methods differ in how they continue x0."""

import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.process import logsnr_drop
from diffusion_jax.core.types import Denoiser, Level, Sampler

# The length of the step before the first: its differences vanish, and the order rises step by step
FAR = 1e30


def growth(s: Level, t: Level):
    """h = log(alpha_s / sigma_s) - log(alpha_t / sigma_t), finite where alpha_t = 0."""
    return jnp.minimum(-0.5 * logsnr_drop(s, t), 80.0)


def _history(count: int):
    """An init: `count` earlier x0 and the lengths of the steps that followed them, newest first."""

    def init(x, level: Level):
        zeros = jnp.zeros_like(x)
        return (zeros,) * count, (jnp.full_like(level.expand(zeros.ndim).alpha, FAR),) * count

    return init


def _hop(x, t: Level, s: Level, h, x0, slope=0.0, bend=0.0):
    """From t to s, h long, where x0 goes on as x0 + slope tau + bend tau^2."""
    phi1 = -jnp.expm1(-h)
    phi2 = h - phi1  # the integrals of e^(tau - h), and of it times tau and tau^2
    phi3 = h**2 - 2.0 * phi2
    return s.sigma / t.sigma * x + s.alpha * (phi1 * x0 + phi2 * slope + phi3 * bend)


@component
def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), one call a step; of order 2."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        (before,), (h_before,) = state
        x0 = denoiser(x, t).x0
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        h = growth(s, t)
        return _hop(x, t, s, h, x0 + h / (2.0 * h_before) * (x0 - before)), ((x0,), (h,))

    return Sampler(_history(1), step)


@component
def dpmpp_3m() -> Sampler:
    """DPM-Solver++(3M) (Lu et al. 2022b, appendix B), one call a step; of order 3.

    x0 goes on as the parabola through the three last ones, integrated exactly; public programs give
    its second difference half of that weight. Wants a grid even in log-SNR, of twenty steps or
    more."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        (before, earlier), (h1, h2) = state
        x0 = denoiser(x, t).x0
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        h = growth(s, t)
        slope = (x0 - before) / h1
        bend = (slope - (before - earlier) / h2) / (h1 + h2)
        return _hop(x, t, s, h, x0, slope + h1 * bend, bend), ((x0, before), (h, h1))

    return Sampler(_history(2), step)


@component
def dpmpp_2m_sde() -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, section 5), one call a step, for the reverse SDE;
    weakly of order 2.

    The order is that of the moments of Gaussian data.
    """

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        (before,), (h_before,) = state
        x0 = denoiser(x, t).x0
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        h = growth(s, t)
        middle = x0 + h / (2.0 * h_before) * (x0 - before)
        fresh = -jnp.expm1(-2.0 * h)
        x = s.sigma / t.sigma * jnp.exp(-h) * x + s.alpha * fresh * middle
        return x + s.sigma * jnp.sqrt(fresh) * noise.normal(keys, x.shape[1:]), ((x0,), (h,))

    return Sampler(_history(1), step, draws_noise=True)


@component
def unipc() -> Sampler:
    """UniPC-2 (Zhao et al. 2023, algorithms 1 and 2, data prediction, B(h) = e^h - 1), one call a
    step; of order 3.

    A step first corrects x with what the network said at the x that the step before had predicted
    (UniC-2, which takes the parabola through the three last x0), then predicts (UniP-2, which is
    DPM-Solver++(2M))."""

    def init(x, level: Level):
        x = jnp.asarray(x)
        return x, level.expand(x.ndim), *_history(2)(x, level)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        start, u, (before, earlier), (h1, h2) = (
            state  # a step of h1 from `start` at u had predicted x at t
        )
        x0 = denoiser(x, t).x0
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        h = growth(s, t)
        slope = (x0 - before) / h1
        bend = (slope - (before - earlier) / h2) / (h1 + h2)
        length = jnp.where(h1 < FAR, h1, 1.0)  # the square of FAR would make gradients NaN
        corrected = _hop(start, u, t, length, before, slope - length * bend, bend)
        x = jnp.where(h1 < FAR, corrected, x)
        return _hop(x, t, s, h, x0 + h / 2.0 * slope), (x, t, (x0, before), (h, h1))

    return Sampler(init, step)


SAMPLERS = {
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}
