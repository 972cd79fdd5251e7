"""Single-step methods, which visit levels between those of the grid: DPM-Solver-2 and -3, and the
probability-flow ODE with steps of its own choice."""

import jax.numpy as jnp

from diffusion_jax.core.components import component
from diffusion_jax.core.grids import between
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.settings import above
from diffusion_jax.core.types import Denoiser, Level, Prediction, Sampler, Schedule
from diffusion_jax.likelihood import ode
from diffusion_jax.samplers.multistep import growth


def _hop(prediction: Prediction, s: Level):
    """To level s: DPM-Solver-1, which is DDIM."""
    return q_sample(prediction.x0, prediction.eps, s)


@component
def dpm_solver_2(schedule: Schedule | None = None) -> Sampler:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1), two calls a step, noise prediction; of order 2.

    schedule: of the network that embeds t, which needs it: without it the t of the level in the
    middle is interpolated, and only nearly right."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        middle = between(t, s, 0.5, schedule)
        first = denoiser(x, t)
        second = denoiser(_hop(first, middle), middle)
        s_, h = s.expand(x.ndim), growth(s.expand(x.ndim), t.expand(x.ndim))
        return _hop(first, s) - s_.sigma * jnp.expm1(h) * (second.eps - first.eps), state

    return Sampler(lambda x, level: (), step)


@component
def dpm_solver_3(schedule: Schedule | None = None) -> Sampler:
    """DPM-Solver-3 (Lu et al. 2022a, algorithm 2, r1 = 1/3, r2 = 2/3), three calls a step, noise
    prediction; of order 3.

    schedule: as in `dpm_solver_2`.
    """

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        one, two = between(t, s, 1 / 3, schedule), between(t, s, 2 / 3, schedule)
        two_, s_ = two.expand(x.ndim), s.expand(x.ndim)
        h = growth(s_, t.expand(x.ndim))
        rest = lambda h: jnp.expm1(h) / h - 1.0
        first = denoiser(x, t)
        second = denoiser(_hop(first, one), one)
        at_two = _hop(first, two) - 2.0 * two_.sigma * rest(2 / 3 * h) * (second.eps - first.eps)
        third = denoiser(at_two, two)
        return _hop(first, s) - 1.5 * s_.sigma * rest(h) * (third.eps - first.eps), state

    return Sampler(lambda x, level: (), step)


@component
def adaptive_ode(
    rtol: float = 1e-4, atol: float = 1e-4, schedule: Schedule | None = None
) -> Sampler:
    """The probability-flow ODE to a tolerance, by diffrax's Tsit5 (Song et al. 2021b, section 4.3),
    adaptive; of order 5.

    A step of the grid is a solve of its own, of six calls or more, so two levels make a whole grid.
    An example's steps are those that the hardest one of its batch needs. schedule: of the network
    that embeds t, which needs it: without it the t between two levels of the grid is interpolated,
    and wrong.

    Args:
      rtol: tolerance relative to an example's root mean square, above 0.
      atol: absolute tolerance of an example's root mean square, above 0.
    """
    above(0, rtol=rtol, atol=atol)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        start, end = (ode.scale(level.expand(x.ndim)) for level in (t, s))
        return end * ode.solve(ode.flow(denoiser, t, s, schedule), x / start, rtol, atol), state

    return Sampler(lambda x, level: (), step)


SAMPLERS = {
    "dpm_solver_2": dpm_solver_2,
    "dpm_solver_3": dpm_solver_3,
    "adaptive_ode": adaptive_ode,
}
