"""Sampling grids: the noise levels that a sampler visits, a Level of arrays [N] from noisy to clean.

The last level is the cleanest that the network sees; from there `samplers.sample` returns the denoiser's x0.
"""

import math

import numpy as np

from diffusion_jax.types import Level, Schedule


def uniform(schedule: Schedule, num_steps: int | None = None) -> Level:
    """`num_steps` levels evenly spread from t_max to t_min, ends included; every index of a table where None.

    Raises ValueError where a table has fewer indices than asked for.
    """
    num_steps = schedule.num_steps if num_steps is None else num_steps
    if num_steps is None:
        raise ValueError("a continuous schedule has no steps of its own: give num_steps")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    t = np.linspace(schedule.t_max, schedule.t_min, num_steps)
    if schedule.num_steps is not None:
        if num_steps > schedule.num_steps:
            raise ValueError(f"{num_steps} sampling steps asked of a table of {schedule.num_steps}")
        t = np.round(t).astype(int)
    return schedule.level(t)


def respaced(schedule: Schedule, spacing: str) -> Level:
    """The levels of a respacing string, as Improved DDPM's and ADM's papers write it.

    "250": 250 indices evenly spread, ends included (Nichol & Dhariwal 2021, section 4). "10,15,20": the table cut into
    three equal parts that get 10, 15 and 20; a part that gets one keeps its first index, so "1" is index 0. "ddim50": 50
    at a whole stride from 0 (Song et al. 2021). Level.t holds the original indices. Raises ValueError for a count that
    cannot be had, naming the nearest that can.
    """
    if schedule.num_steps is None:
        raise ValueError("respacing needs a table schedule; a continuous one takes any grid")
    return schedule.level(np.asarray(respaced_indices(schedule.num_steps, spacing))[::-1])


def respaced_indices(num_steps: int, spacing: str) -> list[int]:
    """The indices, ascending, that a respacing string keeps of 0 ... num_steps - 1."""
    digits = spacing.removeprefix("ddim")
    try:
        counts = [int(part) for part in digits.split(",")]
    except ValueError:
        raise ValueError(f'a spacing reads "250", "10,15,20" or "ddim50", not {spacing!r}') from None
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
            raise ValueError(f"{spacing!r} asks for {count} of the {length} steps from {start}; at most {length} exist")
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
    raise ValueError(f"no whole stride takes exactly {count} of {num_steps} steps; the nearest that exist: {near}")


def indices(schedule: Schedule, chosen: str) -> Level:
    """The levels of the table's indices in a comma-separated list, such as `likelihood.best_steps` chooses."""
    if schedule.num_steps is None:
        raise ValueError("indices are those of a table schedule")
    try:
        t = sorted({int(part) for part in chosen.split(",")}, reverse=True)
    except ValueError:
        raise ValueError(f"indices are whole numbers, as in 0,10,200, not {chosen!r}") from None
    return schedule.level(np.asarray(t))


def truncated(grid: Level, start: float = np.inf, stop: float = -np.inf) -> Level:
    """The levels of a grid with stop <= t <= start.

    From the data noised to its first level, `samplers.sample` starts in mid-chain; its last level is where a chain stops
    early, with the x0 predicted there. Raises ValueError where no level is left.
    """
    t = np.asarray(grid.t)
    kept = (t <= start) & (t >= stop)
    if not kept.any():
        raise ValueError(f"the grid has no level from t = {start} down to {stop}")
    return Level(*(np.asarray(a)[kept] for a in grid))


GRIDS = {"uniform": uniform, "respaced": respaced, "indices": indices}
