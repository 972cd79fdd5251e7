"""The probability-flow ODE with steps of its own choice."""

from diffusion_jax.core.components import component
from diffusion_jax.core.types import Denoiser, Level, Sampler, Schedule
from diffusion_jax.likelihood import ode


@component
def adaptive_ode(
    rtol: float = 1e-4, atol: float = 1e-4, schedule: Schedule | None = None
) -> Sampler:
    """The probability-flow ODE to a tolerance, by diffrax's Tsit5 (Song et al. 2021b, section 4.3),
    adaptive; of order 5.

    A step of the grid is a solve of its own, of six calls or more, so two levels make a whole grid.
    rtol, atol: of an example's root mean square; an example's steps are those that the hardest one
    of its batch needs. schedule: of the network that embeds t, which needs it: without it the t
    between two levels of the grid is interpolated, and wrong."""
    if min(rtol, atol) <= 0.0:
        raise ValueError(f"tolerances are above 0, not {rtol} and {atol}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        start, end = (ode.scale(level.expand(x.ndim)) for level in (t, s))
        return end * ode.solve(ode.flow(denoiser, t, s, schedule), x / start, rtol, atol), state

    return Sampler(lambda x, level: (), step)


SAMPLERS = {"adaptive_ode": adaptive_ode}
