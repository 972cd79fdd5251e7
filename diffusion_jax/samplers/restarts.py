"""Restart: an interval of noise levels is gone through several times (Xu et al. 2023)."""

import jax
import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.grids import at_logsnr
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import Denoiser, Level, Sampler, Schedule, expand
from diffusion_jax.samplers.edm import heun_step

RHO = 7.0  # of the levels within the interval


@component
def restart(
    least: float = 0.1,
    most: float = 2.0,
    repeats: int = 2,
    steps: int = 9,
    schedule: Schedule | None = None,
) -> Sampler:
    """Restart sampling with Heun steps (Xu et al. 2023): from the first level at or
    below `least` noise is added up to `most`, and the way gone again; of no order.

    Two calls a step, and 2 x repeats x steps more. The levels back down are those of Karras et al.
    2022, even in u^(1/7), u = sigma / alpha. A grid that begins below `least` has no such level,
    then it is `heun`.

    schedule: of the network, which embeds the t of these levels, and beyond whose noisiest level
    none is raised; without it they keep the t of the step.

    Args:
      least: u at which the interval ends, above 0.
      most: u at which it begins, above `least`.
      repeats: how often it is gone through again, at least 1; the paper's K.
      steps: Heun steps each time, at least 1; the paper's N_Restart less 1.
    """
    above(0, least=least)
    above(least, most=most)
    at_least(1, repeats=repeats, steps=steps)

    def within(t: Level, s: Level) -> Level:
        """The levels [steps + 1, ...] from `most` down to s."""
        end, begin = s.sigma / s.alpha, jnp.asarray(most, jnp.result_type(s.sigma))
        if schedule is not None:
            top = schedule.level(schedule.t_max).with_signal()
            begin = jnp.minimum(begin, top.sigma / top.alpha)
        begin = jnp.maximum(begin, end)  # of a step for which there is nothing to be done
        share = jnp.linspace(0.0, 1.0, steps + 1).reshape(-1, *(1,) * jnp.ndim(end))
        roots = begin ** (1.0 / RHO), end ** (1.0 / RHO)
        u = (roots[0] + share * (roots[1] - roots[0])) ** RHO
        if schedule is None:
            same = lambda a: jnp.broadcast_to(a, u.shape)
            found = Level(same(t.t), same(t.alpha), t.alpha * u)
        else:
            found = at_logsnr(schedule, -2.0 * jnp.log(u))
        put = lambda a, last: jnp.asarray(a).at[-1].set(last)
        return Level(*map(put, found, s))

    def again(keys, denoiser: Denoiser, x, t: Level, s: Level):
        levels = within(t, s)
        level = lambda i: jax.tree.map(lambda a: a[i], levels)
        first, s_ = level(0).expand(x.ndim), s.expand(x.ndim)
        u, end = first.sigma / first.alpha, s_.sigma / s_.alpha
        added = jnp.sqrt(jnp.maximum((u - end) * (u + end), 0.0))

        def down(i, x):
            return heun_step(denoiser, x, level(i), level(i + 1)).astype(x.dtype)

        def once(i, x):
            drawn = noise.normal(noise.fold_in(keys, i), x.shape[1:])
            raised = first.alpha * (x / s_.alpha + added * drawn)
            return jax.lax.fori_loop(0, steps, down, raised.astype(x.dtype))

        return jax.lax.fori_loop(0, repeats, once, x)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        x = heun_step(denoiser, x, t, s)
        u, end = (jnp.asarray(level.sigma) / level.alpha for level in (t, s))
        acts = (u > least) & (end <= least)
        new = lambda: jnp.where(expand(acts, x.ndim), again(keys, denoiser, x, t, s), x)
        return jax.lax.cond(jnp.any(acts), new, lambda: x), state

    return Sampler(lambda x, level: (), step, draws_noise=True)


SAMPLERS = {"restart": restart}
