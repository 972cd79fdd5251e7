"""Multi-step methods in half the log-SNR, which remember earlier predictions: DPM-Solver++ and
UniPC.

With h the growth of log(alpha / sigma) from t to s, the ODE's solution is x_s = (sigma_s / sigma_t)
x + alpha_s times the integral of e^(tau - h) x0 over tau from 0 to h (Lu et al. 2022b, proposition
4.1); the methods differ in how they continue x0."""

from typing import Literal

import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.process import logsnr_drop
from diffusion_jax.core.settings import inside, one_of
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


def _hop(x, t: Level, s: Level, h, x0, slope=0.0, bend=0.0, eta=0.0):
    """From t to s, h long, where x0 goes on as x0 + slope tau + bend tau^2.

    eta: that of the reverse SDE of noise e^(-2 eta h), whose mean this is; 0 for the ODE."""
    share, rate = jnp.exp(-eta * h) if eta else 1.0, 1.0 + eta
    h = rate * h
    phi1 = -jnp.expm1(-h)
    phi2 = h - phi1  # the integrals of e^(tau - h), and of it times tau and tau^2
    phi3 = h**2 - 2.0 * phi2
    integral = phi1 * x0 + phi2 / rate * slope + phi3 / rate**2 * bend
    return s.sigma / t.sigma * share * x + s.alpha * integral


def _drawn(keys, x, s: Level, h, eta: float):
    """What the reverse SDE of that eta adds in a step to s, h long."""
    if eta == 0.0:
        return 0.0
    return s.sigma * jnp.sqrt(-jnp.expm1(-2.0 * eta * h)) * noise.normal(keys, x.shape[1:])


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
def dpmpp_2m_sde(variant: Literal["midpoint", "heun"] = "midpoint", eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, section 5), one call a step, for the reverse SDE;
    weakly of order 2.

    The order is that of the moments of Gaussian data.

    Args:
      variant: how the line through the last two x0 is integrated: "midpoint", by its value in the
        middle of the step, as the paper has it; "heun", exactly.
      eta: from 0 to 1: the noise that a step leaves of x is e^(-eta h) of what the ODE leaves; at 0
        nothing is drawn, which by the midpoint is `dpmpp_2m`.
    """
    one_of(("midpoint", "heun"), variant=variant)
    inside(0, 1, eta=eta)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        (before,), (h_before,) = state
        x0 = denoiser(x, t).x0
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        h = growth(s, t)
        slope = (x0 - before) / h_before
        line = (x0, slope) if variant == "heun" else (x0 + 0.5 * h * slope, 0.0)
        after = _hop(x, t, s, h, *line, eta=eta) + _drawn(keys, x, s, h, eta)
        return after, ((x0,), (h,))

    return Sampler(_history(1), step, draws_noise=eta > 0.0)


@component
def dpmpp_3m_sde(eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(3M), one call a step, for the reverse SDE (after Lu et al. 2022b, section 5
    and appendix B); of no order.

    x0 goes on as in `dpmpp_3m`; public programs give its second difference half of that weight. The
    moments of Gaussian data are of order 2, with a thirtieth of the error of `dpmpp_2m_sde`.

    Args:
      eta: as in `dpmpp_2m_sde`; at 0 it is `dpmpp_3m`.
    """
    inside(0, 1, eta=eta)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        (before, earlier), (h1, h2) = state
        x0 = denoiser(x, t).x0
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        h = growth(s, t)
        slope = (x0 - before) / h1
        bend = (slope - (before - earlier) / h2) / (h1 + h2)
        after = _hop(x, t, s, h, x0, slope + h1 * bend, bend, eta) + _drawn(keys, x, s, h, eta)
        return after, ((x0, before), (h, h1))

    return Sampler(_history(2), step, draws_noise=eta > 0.0)


@component
def unipc(bh: Literal["bh1", "bh2"] = "bh2") -> Sampler:
    """UniPC-2 (Zhao et al. 2023, algorithms 1 and 2, data prediction), one call a step; of order 3.

    A step first corrects x with what the network said at the x that the step before had predicted
    (UniC-2, which takes the parabola through the three last x0, whatever B(h)), then predicts
    (UniP-2, which with bh2 is DPM-Solver++(2M)).

    Args:
      bh: the paper's B(h): "bh1", h; "bh2", e^h - 1, in data prediction 1 - e^-h.
    """
    one_of(("bh1", "bh2"), bh=bh)

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
        size = h if bh == "bh1" else -jnp.expm1(-h)
        predicted = _hop(x, t, s, h, x0) + 0.5 * s.alpha * size * h * slope
        return predicted, (x, t, (x0, before), (h, h1))

    return Sampler(init, step)


SAMPLERS = {
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
}
