"""Sampling grids: the noise levels that a sampler visits, a Level of arrays [N] from noisy to
clean.

The last level is the cleanest that the network sees; from there `samplers.sample` returns the
denoiser's x0."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.schedules.continuous import time_shifted
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import Array, Level, Schedule


def _count(schedule: Schedule, num_steps: int | None) -> int:
    """num_steps, or the number of a table's indices where None; ValueError where it cannot be."""
    num_steps = schedule.num_steps if num_steps is None else num_steps
    if num_steps is None:
        raise ValueError("a continuous schedule has no steps of its own: give num_steps")
    at_least(1, num_steps=num_steps)
    return num_steps


def uniform(schedule: Schedule, num_steps: int | None = None) -> Level:
    """`num_steps` levels evenly spread from t_max to t_min, ends included; every index of a table
    where None.

    Raises ValueError where a table has fewer indices than asked for.

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for all of a
        table's.
    """
    num_steps = _count(schedule, num_steps)
    t = np.linspace(schedule.t_max, schedule.t_min, num_steps)
    if schedule.num_steps is not None:
        if num_steps > schedule.num_steps:
            raise ValueError(f"{num_steps} sampling steps asked of a table of {schedule.num_steps}")
        t = np.round(t).astype(int)
    return schedule.level(t)


def respaced(schedule: Schedule, spacing: str | None = None) -> Level:
    """The levels of a respacing string, as Improved DDPM's and ADM's papers write it.

    "250": 250 indices evenly spread, ends included (Nichol & Dhariwal 2021, section 4). "10,15,20":
    the table cut into three equal parts that get 10, 15 and 20; a part that gets one keeps its
    first index, so "1" is index 0. "ddim50": 50 at a whole stride from 0 (Song et al. 2021).
    Level.t holds the original indices. Raises ValueError for a count that cannot be had, naming the
    nearest that can.

    Args:
      spacing: counts of indices, as in 250, 10,15,20 or ddim50; None for all of a table's.
    """
    if schedule.num_steps is None:
        raise ValueError("respacing needs a table schedule; a continuous one takes any grid")
    spacing = str(schedule.num_steps) if spacing is None else spacing
    return schedule.level(np.asarray(respaced_indices(schedule.num_steps, spacing))[::-1])


def respaced_indices(num_steps: int, spacing: str) -> list[int]:
    """The indices, ascending, that a respacing string keeps of 0 ... num_steps - 1."""
    digits = spacing.removeprefix("ddim")
    try:
        counts = [int(part) for part in digits.split(",")]
    except ValueError:
        raise ValueError(
            f'a spacing reads "250", "10,15,20" or "ddim50", not {spacing!r}'
        ) from None
    if min(counts) < 1:
        raise ValueError(f"a spacing's counts are at least 1: {spacing!r}")
    if spacing.startswith("ddim"):
        if len(counts) != 1:
            raise ValueError(f'a DDIM spacing has one count, as in "ddim50": {spacing!r}')
        return _strided(num_steps, counts[0])
    kept = []
    size, larger = divmod(num_steps, len(counts))
    start = 0
    for part, count in enumerate(counts):
        length = size + (part < larger)
        if count > length:
            raise ValueError(
                f"{spacing!r} asks for {count} of the {length} steps from {start}; "
                f"at most {length} exist"
            )
        # Python's round, half to even, of the accumulated fraction, as the papers' code has it
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return kept


def _strided(num_steps: int, count: int) -> list[int]:
    def length(stride):
        return math.ceil(num_steps / stride)

    strides = range(1, max(2, num_steps))  # a stride of the whole table, "ddim1", is none
    for stride in strides:
        if length(stride) == count:
            return list(range(0, num_steps, stride))
    possible = sorted({length(stride) for stride in strides})
    below = [n for n in possible if n < count][-1:]
    above = [n for n in possible if n > count][:1]
    near = " and ".join(f"ddim{n}" for n in below + above)
    raise ValueError(
        f"no whole stride takes exactly {count} of {num_steps} steps; "
        f"the nearest that exist: {near}"
    )


def explicit(schedule: Schedule, chosen: str | Array | Sequence[float]) -> Level:
    """The levels of any t: a list, or a comma-separated string such as `likelihood.best_steps`
    chooses.

    In any order; whole numbers are a table's indices, others lie between them. Raises ValueError
    for a t twice or outside the schedule.

    Args:
      chosen: values of t, as in 200,10,0.
    """
    if isinstance(chosen, str):
        try:
            chosen = np.array([float(part) for part in chosen.split(",")])
        except ValueError:
            raise ValueError(
                f"explicit steps are values of t, as in 200,10,0, not {chosen!r}"
            ) from None
    t = np.sort(np.ravel(chosen))[::-1]
    if schedule.num_steps is not None and np.all(t == np.round(t)):
        t = t.astype(int)
    if len(np.unique(t)) < len(t):
        raise ValueError("explicit steps hold a t twice")
    if len(t) == 0 or t[0] > schedule.t_max or t[-1] < schedule.t_min:
        raise ValueError(
            f"explicit steps lie between {schedule.t_min} and {schedule.t_max}, not {t}"
        )
    return schedule.level(t)


def _spread(schedule: Schedule, fraction, ends: tuple[float, float], whole: bool = True) -> Level:
    """Levels of t = low + fraction (high - low), moved to a table's indices where whole."""
    (low, high), num_steps = ends, len(fraction)
    t = low + np.asarray(fraction) * (high - low)
    if schedule.num_steps is not None:
        if num_steps > schedule.num_steps:
            raise ValueError(f"{num_steps} sampling steps asked of a table of {schedule.num_steps}")
        t = np.round(t).astype(int) if whole else t
    return schedule.level(t)


def quadratic(schedule: Schedule, num_steps: int | None = None) -> Level:
    """t in squares from t_max to t_min, finer where it is clean (Song et al. 2021, appendix D.2);
    between a table's indices.

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for as many as a
        table has.
    """
    fraction = np.linspace(1.0, 0.0, _count(schedule, num_steps)) ** 2
    return _spread(schedule, fraction, (schedule.t_min, schedule.t_max), whole=False)


def trailing(schedule: Schedule, num_steps: int | None = None) -> Level:
    """The noisy ends of equal parts: t_max, but not t_min (Lin et al. 2023, table 2).

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for all of a
        table's.
    """
    num_steps = _count(schedule, num_steps)
    # a table has T parts of one index each, so that index T - 1 is the end of the last
    low = -1 if schedule.num_steps is not None else schedule.t_min
    return _spread(schedule, np.arange(num_steps, 0, -1) / num_steps, (low, schedule.t_max))


def leading(schedule: Schedule, num_steps: int | None = None) -> Level:
    """The clean ends of equal parts: t_min, but not t_max; "ddimN" where N divides a table (Song et
    al. 2021).

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for all of a
        table's.
    """
    num_steps = _count(schedule, num_steps)
    high = schedule.num_steps if schedule.num_steps is not None else schedule.t_max
    return _spread(schedule, np.arange(num_steps - 1, -1, -1) / num_steps, (schedule.t_min, high))


def shifted(schedule: Schedule, num_steps: int | None = None, shift: float = 3.0) -> Level:
    """t = s u / (1 + (s - 1) u) of the way from t_min to t_max, u evenly spread: finer where it is
    noisy (Esser et al. 2024, eq. 23, for rectified flow); between a table's indices.

    Args:
      num_steps: number of levels, at least 1; None for as many as a table has.
      shift: s, above 0; sqrt(m / n) for images of m pixels, n those for which an even t is right;
        the paper's is 3.
    """
    above(0, shift=shift)
    fraction = time_shifted(np.linspace(1.0, 0.0, _count(schedule, num_steps)), shift)
    return _spread(schedule, fraction, (schedule.t_min, schedule.t_max), whole=False)


def at_logsnr(schedule: Schedule, logsnr: Any) -> Level:
    """The levels of a schedule at any log-SNR, clipped to its ends; between the indices of a
    table."""
    t = jnp.clip(schedule.inverse(logsnr), schedule.t_min, schedule.t_max)
    return schedule.level(t)


def _ends(schedule: Schedule) -> tuple[float, float]:
    """log-SNR of the noisiest and of the cleanest level."""
    with jax.ensure_compile_time_eval():  # a grid may be made inside a jitted function
        low, high = (float(schedule.level(t).logsnr) for t in (schedule.t_max, schedule.t_min))
    if not np.isfinite(low):
        raise ValueError("a grid over the log-SNR needs alpha > 0 at the noisiest level")
    return low, high


def noise_range(schedule: Schedule, most: float = math.inf) -> tuple[float, float]:
    """(the least, the largest) sigma / alpha of a schedule, of which the latter is at most
    `most`."""
    with jax.ensure_compile_time_eval():
        levels = [schedule.level(t) for t in (schedule.t_min, schedule.t_max)]
        low, high = (float(level.sigma / level.with_signal().alpha) for level in levels)
    if not low < most:
        raise ValueError(f"the schedule's cleanest sigma / alpha is {low:.3g}, not below {most:g}")
    return low, min(high, most)


def karras(schedule: Schedule, num_steps: int | None = None, rho: float = 7.0) -> Level:
    """(sigma / alpha)^(1 / rho) evenly spread from the noisiest level to the cleanest (Karras et
    al. 2022, eq. 5).

    Between the indices of a table; `quantized` moves the levels onto them.

    Args:
      num_steps: number of levels, at least 1; None for as many as a table has.
      rho: the exponent, above 0; the larger, the finer the grid where it is clean.
    """
    num_steps = _count(schedule, num_steps)
    above(0, rho=rho)
    low, high = np.exp(-0.5 * np.array(_ends(schedule)) / rho)
    return at_logsnr(schedule, -2.0 * rho * np.log(np.linspace(low, high, num_steps)))


def logsnr(schedule: Schedule, num_steps: int | None = None) -> Level:
    """log-SNR evenly spread from the noisiest level to the cleanest (Lu et al. 2022a).

    Between the indices of a table, as `karras`.

    Args:
      num_steps: number of levels, at least 1; None for as many as a table has.
    """
    num_steps = _count(schedule, num_steps)
    return at_logsnr(schedule, np.linspace(*_ends(schedule), num_steps))


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


GRIDS = {
    "uniform": uniform,
    "respaced": respaced,
    "explicit": explicit,
    "karras": karras,
    "logsnr": logsnr,
    "quadratic": quadratic,
    "trailing": trailing,
    "leading": leading,
    "shifted": shifted,
}
