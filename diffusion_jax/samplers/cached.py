"""A sampler that evaluates one branch of its denoiser, such as the unconditional one, only every so
many steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Denoiser, Level, Prediction, Sampler
from diffusion_jax.denoisers import with_eps


def cached(
    sampler: Sampler,
    branch: Denoiser,
    build: Callable[[Denoiser], Denoiser],
    every: int,
    interval: tuple[float, float] | None = None,
) -> Sampler:
    """A sampler whose denoiser is build(branch), the branch evaluated at every `every`-th step
    alone and kept in between.

    Kept is the branch's x0 at the step's x and t; its eps is recomputed for any other x and level
    that the sampler asks about. build: (a Denoiser) -> the whole one, guidance and clipping
    included. interval: low < sigma / alpha <= high, where the branch counts; outside of it the
    branch is not evaluated and steps are not counted. `step` leaves its own denoiser aside, so that
    in `sample` the last hop alone sees it: give it build(branch). Not for a branch that fills
    `Prediction.aux`, which is not kept. every = 1 is `sampler` wherever it calls the denoiser once
    a step. ValueError for every < 1 and for `flow_map`, whose branches are told where a step
    ends."""
    if every < 1:
        raise ValueError(f"a branch is evaluated every 1 or more steps, not every {every}")
    if sampler.last is not None:
        raise ValueError("a flow map's branches are evaluated in every step: set every to 1")

    def init(x, level: Level):
        return sampler.init(x, level), jnp.zeros_like(x), jnp.int32(0)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        inner, kept, count = state
        ratio = jnp.asarray(t.sigma) / t.alpha
        acts = True if interval is None else jnp.any((interval[0] < ratio) & (ratio <= interval[1]))
        fresh = acts & (count % every == 0)
        kept = jax.lax.cond(fresh, lambda: branch(x, t).x0.astype(kept.dtype), lambda: kept)

        def stand_in(x, level: Level) -> Prediction:
            return with_eps(kept, x, level)

        x, inner = sampler.step(keys, build(stand_in), x, inner, t, s)
        return x, (inner, kept, count + jnp.asarray(acts, jnp.int32))

    return Sampler(init, step, sampler.draws_noise)
