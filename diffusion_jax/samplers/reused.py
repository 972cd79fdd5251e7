"""A sampler whose network computes its deep features only every so many steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Level, Prediction, PyTree, Sampler


def reused(
    sampler: Sampler,
    network: Callable[[Any, Level, PyTree], tuple[Prediction, PyTree]],
    every: int,
) -> Sampler:
    """A sampler whose network is evaluated whole at every `every`-th step alone, and in between
    from the deep features of then (DeepCache, Ma et al. 2024, section 3.2, the uniform strategy).

    network: (x, level, deep) -> (Prediction, deep); deep is None for a whole evaluation, else what
    one returned, arrays of fixed shapes. What the sampler asks at another x or level within a step
    is evaluated from the step's features. `step` leaves its own denoiser aside, so that in `sample`
    the last hop alone sees it. every = 1 is `sampler` wherever it calls the denoiser once a step.
    ValueError for every < 1, and for a sampler of flow maps, which tells its denoiser where it
    goes."""
    if every < 1:
        raise ValueError(f"deep features are computed every 1 or more steps, not every {every}")
    if sampler.last is not None:
        raise ValueError("deep features are not kept by a sampler of flow maps")

    def init(x, level: Level):
        shapes = jax.eval_shape(lambda x: network(x, level, None)[1], jnp.asarray(x))
        return sampler.init(x, level), zeros(shapes), jnp.int32(0)

    def step(keys, denoiser, x, state, t: Level, s: Level):
        inner, deep, count = state
        here, deep = jax.lax.cond(
            count % every == 0, lambda: network(x, t, None), lambda: network(x, t, deep)
        )

        def known(y, level: Level) -> Prediction:
            return here if y is x and level is t else network(y, level, deep)[0]

        x, inner = sampler.step(keys, known, x, inner, t, s)
        return x, (inner, deep, count + 1)

    return Sampler(init, step, sampler.draws_noise)


def zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
