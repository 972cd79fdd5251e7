"""A chain whose steps are evaluated side by side: ParaDiGMS (Shih et al. 2023)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core.grids import finite
from diffusion_jax.core.settings import above
from diffusion_jax.core.types import Array, Denoiser, Level


class Picard(NamedTuple):
    """What `picard` returns."""

    x0: jax.Array  # [B, ...]
    iterations: jax.Array  # calls of the network one after the other, the last hop's among them


def picard(
    denoiser: Denoiser,
    x_init: Array,
    grid: Level,
    window: int,
    tolerance: float = 0.01,
    spread: Callable = lambda a: a,
) -> Picard:
    """DDIM's chain (eta = 0) by Picard iterations over a window of its levels (Shih et al. 2023,
    algorithm 1).

    An iteration predicts x0 at `window` levels in one call of as many times the batch, and from all
    of them x at every later level. In z = x / sigma a step adds x0 times the growth of alpha /
    sigma, so x is a sum, and where no x0 changes any more it is the serial chain's. The window
    moves on past the levels whose x changed by at most the tolerance, at least by one: with
    tolerance 0 the result is `sample(ddim(), ...)` but for rounding, in at most as many iterations
    as levels. It pays where one call of window x batch takes less time than `window` calls of the
    batch: on accelerators that a batch does not fill, or on several.

    denoiser: of B examples, without a state. x_init: [B, ...], at the first level. grid: levels
    [N], noisy to clean. tolerance: root mean square over an example, x in units of its deviation,
    sqrt(alpha^2 + sigma^2); the largest of the batch counts; it may be traced. spread: applied to
    the x [window, B, ...] of a call, to lay them out over several accelerators."""
    above(0, window=window)
    if isinstance(tolerance, (int, float)) and tolerance < 0:
        raise ValueError(f"tolerance must be at least 0, not {tolerance}")
    x_init = jnp.asarray(x_init)
    x_init = x_init.astype(jnp.promote_types(x_init.dtype, jnp.float32))
    grid = finite(Level(*(jnp.asarray(a) for a in grid)))
    level = lambda i: jax.tree.map(lambda a: a[i], grid)
    last = len(grid.t) - 1
    if last == 0:
        return Picard(denoiser(x_init, level(0)).x0, jnp.int32(1))
    window = min(window, last)
    column = lambda a: jnp.asarray(a, x_init.dtype).reshape((-1,) + (1,) * x_init.ndim)
    sigma, ratio = column(grid.sigma), column(grid.alpha / grid.sigma)
    deviation = jnp.sqrt(jnp.square(grid.alpha) + jnp.square(grid.sigma))
    number = jnp.arange(last + 1)

    def iterate(carry):
        x, first, count = carry  # x [N, B, ...] is right up to level number `first`
        start = jnp.minimum(first, last - window)
        part = lambda a: jax.lax.dynamic_slice_in_dim(a, start, window)
        x0 = jax.vmap(lambda x, t: denoiser(x, t).x0)(spread(part(x)), jax.tree.map(part, grid))
        # of every level's step; behind the window that of its last level
        x0 = x0[jnp.clip(number[:-1] - start, 0, window - 1)].astype(x.dtype)
        steps = jnp.where(column(number[:-1] >= first) > 0, jnp.diff(ratio, axis=0) * x0, 0.0)
        z = x[first] / sigma[first] + jnp.cumsum(steps, axis=0)
        after = jnp.concatenate([x[:1], sigma[1:] * z])
        after = jnp.where(column(number > first) > 0, after, x)
        change = jnp.square(after - x).reshape(last + 1, x.shape[1], -1).mean(axis=2).max(axis=1)
        right = jnp.sqrt(change) <= tolerance * deviation
        right = (number <= first) | (right & (number < start + window))
        return after, jnp.argmin(right).astype(jnp.int32), count + 1

    x = sigma * (x_init / sigma[0])  # where every x0 is 0
    x, _, count = jax.lax.while_loop(
        lambda carry: carry[1] < last, iterate, (x, jnp.int32(0), jnp.int32(0))
    )
    return Picard(denoiser(x[last], level(last)).x0, count + 1)
