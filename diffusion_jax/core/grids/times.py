"""Grids spread over t."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv

from diffusion_jax.core.schedules.continuous import time_shifted
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import Array, Level, Schedule


def count(schedule: Schedule, num_steps: int | None) -> int:
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
    num_steps = count(schedule, num_steps)
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
    fraction = np.linspace(1.0, 0.0, count(schedule, num_steps)) ** 2
    return _spread(schedule, fraction, (schedule.t_min, schedule.t_max), whole=False)


def trailing(schedule: Schedule, num_steps: int | None = None) -> Level:
    """The noisy ends of equal parts: t_max, but not t_min (Lin et al. 2023, table 2).

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for all of a
        table's.
    """
    num_steps = count(schedule, num_steps)
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
    num_steps = count(schedule, num_steps)
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
    fraction = time_shifted(np.linspace(1.0, 0.0, count(schedule, num_steps)), shift)
    return _spread(schedule, fraction, (schedule.t_min, schedule.t_max), whole=False)


def _downward(schedule: Schedule, num_steps: int | None) -> np.ndarray:
    """N, N - 1, ... 1 of N: the noisy ends of equal parts of [0, 1]."""
    number = count(schedule, num_steps)
    return np.arange(number, 0, -1) / number


def sgm_uniform(schedule: Schedule, num_steps: int | None = None) -> Level:
    """t_max and on in equal steps that would end at t_min, which is left out (Stability AI's
    generative-models); between a table's indices.

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for as many as a
        table has.
    """
    ends = (schedule.t_min, schedule.t_max)
    return _spread(schedule, _downward(schedule, num_steps), ends, whole=False)


def simple(schedule: Schedule, num_steps: int | None = None) -> Level:
    """Of a table the noisiest index of each of N equal parts, counted down from the last and cut to
    whole ones, as ComfyUI has it: `trailing` but for the rounding; in continuous time `trailing`.

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for all of a
        table's.
    """
    total = schedule.num_steps
    if total is None:
        return trailing(schedule, num_steps)
    number = count(schedule, num_steps)
    if number > total:
        raise ValueError(f"{number} sampling steps asked of a table of {total}")
    return schedule.level(total - 1 - np.arange(number) * total // number)


def beta(
    schedule: Schedule, num_steps: int | None = None, alpha: float = 0.6, beta: float = 0.6
) -> Level:
    """t at the quantiles 1, ... 2/N, 1/N of a Beta distribution from t_min to t_max, finer at both
    ends (Lee et al. 2024); between a table's indices, to which ComfyUI rounds.

    diffusers spreads sigma / alpha by these quantiles in place of t.

    Args:
      num_steps: number of levels, at least 1 and at most those of a table; None for as many as a
        table has.
      alpha: the first shape, above 0; 1 and 1 are `sgm_uniform`.
      beta: the second shape, above 0.
    """
    above(0, alpha=alpha, beta=beta)
    fraction = betaincinv(alpha, beta, _downward(schedule, num_steps))
    return _spread(schedule, fraction, (schedule.t_min, schedule.t_max), whole=False)
