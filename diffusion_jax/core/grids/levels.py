"""Levels of a grid made others: kept finite, between two, moved to indices, cut off."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.grids.ratios import at_logsnr
from diffusion_jax.core.types import Level, Schedule


def finite(level: Level) -> Level:
    """The levels with alpha at least sigma / 10^6, so that a rectified flow from t = 1 has a
    log-SNR."""
    return Level(level.t, jnp.maximum(level.alpha, 1e-6 * level.sigma), level.sigma)


def between(t: Level, s: Level, fraction: float, schedule: Schedule | None = None) -> Level:
    """The level at that fraction of the way from t to s, in log-SNR.

    schedule: of the network, which embeds t. Without it alpha, sigma and t are interpolated, the
    first two geometrically."""
    mix = lambda a, b: a + fraction * (b - a)
    if schedule is not None:
        return at_logsnr(schedule, mix(t.logsnr, s.logsnr))
    geometric = lambda a, b: jnp.exp(mix(jnp.log(a), jnp.log(b)))
    return Level(mix(t.t, s.t), geometric(t.alpha, s.alpha), geometric(t.sigma, s.sigma))


def quantized(schedule: Schedule, grid: Level) -> Level:
    """The grid moved to the nearest indices of a table, for networks that know no other t; each
    index once."""
    if schedule.num_steps is None:
        raise ValueError("only a table has indices to move a grid to")
    return schedule.level(np.unique(np.round(np.asarray(grid.t)).astype(int))[::-1])


def truncated(grid: Level, start: float = np.inf, stop: float = -np.inf) -> Level:
    """The levels of a grid with stop <= t <= start.

    From the data noised to its first level, `samplers.sample` starts in mid-chain; its last level
    is where a chain stops early, with the x0 predicted there. Raises ValueError where no level is
    left."""
    t = np.asarray(grid.t)
    kept = (t <= start) & (t >= stop)
    if not kept.any():
        raise ValueError(f"the grid has no level from t = {start} down to {stop}")
    return Level(*(np.asarray(a)[kept] for a in grid))
