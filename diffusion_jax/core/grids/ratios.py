"""Grids spread over sigma / alpha, which are those of any schedule."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.grids.times import count
from diffusion_jax.core.settings import above, one_of
from diffusion_jax.core.types import Level, Schedule


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
    num_steps = count(schedule, num_steps)
    above(0, rho=rho)
    low, high = np.exp(-0.5 * np.array(_ends(schedule)) / rho)
    return at_logsnr(schedule, -2.0 * rho * np.log(np.linspace(low, high, num_steps)))


def logsnr(schedule: Schedule, num_steps: int | None = None) -> Level:
    """log-SNR evenly spread from the noisiest level to the cleanest (Lu et al. 2022a).

    Between the indices of a table, as `karras`.

    Args:
      num_steps: number of levels, at least 1; None for as many as a table has.
    """
    num_steps = count(schedule, num_steps)
    return at_logsnr(schedule, np.linspace(*_ends(schedule), num_steps))


def exponential(schedule: Schedule, num_steps: int | None = None) -> Level:
    """log(sigma / alpha) evenly spread from the noisiest level to the cleanest: k-diffusion's name
    for `logsnr`.

    Between the indices of a table, as `karras`.

    Args:
      num_steps: number of levels, at least 1; None for as many as a table has.
    """
    return logsnr(schedule, num_steps)


def polyexponential(schedule: Schedule, num_steps: int | None = None, rho: float = 1.0) -> Level:
    """log(sigma / alpha) by a power of an even spread from the noisiest level to the cleanest
    (k-diffusion).

    Between the indices of a table, as `karras`.

    Args:
      num_steps: number of levels, at least 1; None for as many as a table has.
      rho: the power, above 0; 1 is `exponential`, and the larger, the finer where it is clean.
    """
    above(0, rho=rho)
    low, high = _ends(schedule)
    return at_logsnr(
        schedule, high + (low - high) * np.linspace(1.0, 0.0, count(schedule, num_steps)) ** rho
    )


# sigma / alpha of ten steps, the last for clean data (Sabour et al. 2024)
KNOTS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(
    schedule: Schedule, num_steps: int | None = None, model: Literal["sd15", "sdxl", "svd"] = "sd15"
) -> Level:
    """The ten steps of a published model, optimised by its authors, and their log-linear
    interpolation for other numbers (Sabour et al. 2024, whose numbers these are).

    The first level is the schedule's noisiest in place of theirs, which the others follow as far as
    they lie between the schedule's ends; the last knot stands for clean data and is left out.
    Between the indices of a table, as `karras`.

    Args:
      num_steps: number of levels, at least 1; None for as many as a table has.
      model: whose steps: Stable Diffusion 1.5, SDXL or Stable Video Diffusion.
    """
    one_of(tuple(KNOTS), model=model)
    number, (low, high) = count(schedule, num_steps), _ends(schedule)
    published = -2.0 * np.log(KNOTS[model])
    last = min(published[-1], high)
    within = published[1:-1]
    knots = np.array([low, *within[(within > low) & (within < last)], last])
    places = np.linspace(0.0, len(knots) - 1.0, number + 1)[:-1]
    return at_logsnr(schedule, np.interp(places, np.arange(len(knots)), knots))
