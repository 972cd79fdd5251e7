"""Samples in the seconds given, and first results on the way: a chain drawn in pieces.

The chain is compiled once for any number of steps, since the grid is an argument, filled up to one
length. It goes on in pieces, each of a quarter of the steps left, at least one; after each the time
of a step is measured anew, and where the steps left do not fit into the time left, or would fit
with more of them, the rest of the grid is chosen again."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax import samplers
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import fold_in, initial_noise
from diffusion_jax.core.types import Level, PyTree, Schedule
from diffusion_jax.data.averaging import averaged
from diffusion_jax.devices.parallel import equal_batches, map_pieces, place, precision, share_out
from diffusion_jax.runs.build import Parts, make_grid
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.draw import chain_of, make_examples
from diffusion_jax.runs.half_size import check_whole

MOST = 1000  # levels of a grid in continuous time
PIECES = 4  # a piece is this part of the steps left
MORE = 1.15  # the rest is chosen again where this much more of it would fit
WARM = 3  # steps by which the time of one is measured first


class Drawn(NamedTuple):
    """What `draw_until` returns."""

    data: np.ndarray  # [n, ...]
    steps: int  # levels of the grid, of which each costs what a step of the sampler does
    seconds: float  # from the call, or the end of compiling, to the data on the host
    compiling: float  # seconds before these, of the first call for so many examples
    fewest: int = 0  # of several batches: the steps of the one that had fewest


@dataclass
class Pace:
    """Seconds, as measured last; between two calls those of the first one's mean."""

    step: float
    last: float  # of the last hop, with decoding and the way to the host
    look: float


def check_deadline(config: Config, early: bool = False) -> None:
    """Raises UserError where a run cannot draw until a deadline, or with early results."""
    sampling = config.sampling
    what = "early results" if early else "a deadline"
    if jax.process_count() > 1:
        raise UserError(f"{what}: one process draws them, whose clock counts; start one alone")
    check_whole(config, f"with {what} a run draws")
    if early:
        return
    if sampling.tolerance or sampling.grid.entry == "explicit":
        other = "an explicit grid" if not sampling.tolerance else "config.sampling.tolerance"
        raise UserError(
            f"a deadline chooses the number of steps, and so does {other}: leave it out"
        )
    if sampling.sampler.values().get("churn") is not None:
        raise UserError(
            "config.sampling.sampler.churn is divided by the number of steps, which a deadline "
            "chooses on the way; give config.sampling.sampler.gamma"
        )


def of_length(schedule: Schedule, length: int) -> Schedule:
    """The schedule with lists of t, and of log-SNR, filled up to one length by their last entry, so
    that grids of any number of levels are computed by programs that are compiled once."""

    def filled(a: Any) -> Any:
        a = np.asarray(a)
        return a if a.ndim == 0 else np.pad(a, (0, length - len(a)), mode="edge")

    return Schedule(
        lambda t: schedule.level(filled(t)),
        lambda logsnr: schedule.inverse(filled(logsnr)),
        *schedule[2:],
    )


def make_levels(config: Config, parts: Parts) -> Callable[[int], Level]:
    """levels(num_steps) -> the run's grid of so many levels, arrays of NumPy; of fewer where
    sampling.quantize joins some."""
    filled = of_length(parts.schedule, parts.schedule.num_steps or MOST)

    def levels(num_steps: int) -> Level:
        grid = Level(*map(np.asarray, make_grid(config, filled, str(num_steps))))
        count = len(np.unique(grid.t)) if config.sampling.quantize else num_steps
        return Level(*(a[:count] for a in grid))

    return levels


def chosen_again(
    levels: Callable[[int], Level], grid: Level, done: int, count: int, most: int
) -> Level:
    """The grid up to level number `done` and, after it, `count` levels or fewer of the run's
    construction, the last of which is the run's cleanest."""
    left = len(grid.t) - 1 - done
    rest = grid
    if count > left:  # a finer grid
        rest = levels(min(most, round(len(grid.t) * count / left)))
    after = np.flatnonzero(np.asarray(rest.t) < grid.t[done])
    count = min(count, len(after))
    kept = after[np.linspace(-1, len(after) - 1, count + 1).round().astype(int)[1:]]
    return Level(
        *(np.concatenate([a[: done + 1], b[kept]]) for a, b in zip(grid, rest, strict=True))
    )


def supported(level: Level, shape: tuple[int, ...]) -> int:
    """The side of the blocks of pixels whose means an x at a level tells, for images [H, W, C].

    The noise of x / alpha has the deviation sigma / alpha, that of its mean over b x b pixels
    sigma / (alpha b). The block is the smallest power of two with which that is at most 1, half of
    the data's range; it divides H and W and leaves two pixels a side. 1 for what is no image."""
    block, noise = 1, float(level.sigma) / max(float(level.alpha), 1e-30)
    if len(shape) != 3:
        return 1
    while noise > block and all(a % (2 * block) == 0 and a >= 4 * block for a in shape[:2]):
        block *= 2
    return block


def make_draw_until(
    config: Config,
    parts: Parts,
    weak: PyTree = None,
    decoded: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[..., Drawn]:
    """draw_until(params, index [n], seconds=None, seed=None, w=None, early=0, on_step=None) ->
    `Drawn`: samples as of `draw.make_generate`, in the seconds given.

    seconds: from the call to the data on the host; None draws the grid of config.sampling, whatever
    it takes. The number of steps is the largest that fits by the time of a step, which is measured
    on the way: at least two levels, at most those of a table, or 1,000. The data come late only
    by what the steps left take longer than measured, of two levels by what these take. What is
    compiled, in the first call for so many examples, is not counted, and said in
    `Drawn.compiling`. Where nothing is chosen again on the way, the samples are those of
    `make_generate` with as many steps.

    early: how often on_step(k, data) is called on the way, evenly spread over the steps; k: steps
    taken; data [n, ...]: the x0 predicted from there, as in `Drawn.data`, but images at the
    resolution that the level supports (`supported`). Each costs a call of the network more, within
    the seconds. weak, seed, w: as of `make_generate`. decoded: data, such as uint8 images, else x0.
    For one process, on all its devices; UserError where the settings fix the number of steps.
    """
    check_deadline(config, early=True)
    shape, examples_of = tuple(parts.codec.shape), make_examples(config, parts)
    most = parts.schedule.num_steps or MOST
    length = max(most, len(parts.grid.t))
    levels = make_levels(config, parts)
    paces: dict[Any, Pace] = {}

    def begin(whole, examples):
        all_params, first = whole
        keys, denoiser, sampler = chain_of(config, parts, all_params[:2], examples)
        x_init = initial_noise(fold_in(keys, 0), shape, Level(*(a[0] for a in first)))
        return samplers.begin(sampler, denoiser, fold_in(keys, 1), x_init, first)

    def advance(whole, shared):
        (all_params, grid, start, stop), (examples, carry) = whole, shared
        keys, denoiser, sampler = chain_of(config, parts, all_params[:2], examples)
        return samplers.advance(sampler, denoiser, fold_in(keys, 1), carry, grid, start, stop)

    def look(whole, shared):
        (all_params, grid, i), (examples, carry) = whole, shared
        _, denoiser, sampler = chain_of(config, parts, all_params[:2], examples)
        x0 = samplers.look(samplers.final(sampler, denoiser), carry, grid, i)
        return parts.codec.decode(all_params[2], x0) if decoded else x0

    decoder = functools.cache(lambda: place(parts.codec.params) if decoded else ())
    begin, advance, look = map_pieces(begin), map_pieces(advance), map_pieces(look)

    def filled(grid: Level) -> Level:
        return Level(*(np.pad(a, (0, length - len(a)), mode="edge") for a in grid))

    def shown(seen: np.ndarray, level: Level) -> np.ndarray:
        """Images at the resolution that the level supports; those of latents as they are."""
        if parts.codec.moments:
            return seen
        whole = np.issubdtype(seen.dtype, np.integer)
        block = supported(level, seen.shape[1:])
        return seen if block == 1 else averaged(seen, block, whole).astype(seen.dtype)

    def measured(all_params, examples) -> Pace:
        """The time of a few steps and of the last hop."""
        grid, steps = filled(levels(most)), min(WARM, most - 1)
        carry = jax.block_until_ready(begin((all_params, grid), examples))
        start = clock()
        carry = jax.block_until_ready(advance((all_params, grid, 0, steps), (examples, carry)))
        middle = clock()
        np.asarray(look((all_params, grid, steps), (examples, carry)))
        last = clock() - middle
        return Pace((middle - start) / max(steps, 1), last, last)

    def drawing(all_params, examples, size, pace, until, early, on_step) -> tuple[np.ndarray, int]:
        spare = lambda looks: until - clock() - pace.last - looks * pace.look
        fits = lambda looks: int(spare(looks) / max(pace.step, 1e-9))
        at = [(j + 1) / (early + 1) for j in range(early)]  # of the steps, when to look
        grid = Level(*map(np.asarray, parts.grid))
        if until < np.inf:
            grid = levels(int(np.clip(1 + fits(early), min(2, most), most)))
        carry = jax.block_until_ready(begin((all_params, filled(grid)), examples))
        done, stepping, begun = 0, 0.0, clock()
        while (left := len(grid.t) - 1 - done) > 0:
            stop = done + (max(1, left // PIECES) if until < np.inf else left)
            if at:
                stop = min(stop, max(done + 1, round(at[0] * (len(grid.t) - 1))))
            whole = (all_params, filled(grid), done, stop)
            carry = jax.block_until_ready(advance(whole, (examples, carry)))
            stepping += (taken := clock() - begun)
            pace.step, done = taken / (stop - done), stop
            due = sum(done >= round(part * (len(grid.t) - 1)) for part in at)
            if due:
                before, at = clock(), at[due:]
                seen = np.asarray(look((all_params, filled(grid), done), (examples, carry)))[:size]
                on_step(done, shown(seen, Level(*(a[done] for a in grid))))
                pace.look = clock() - before
            left = len(grid.t) - 1 - done
            if until < np.inf and left:
                count = max(1, min(fits(len(at)), most - 1 - done))
                if count < left or count > MORE * left + 1:
                    grid = chosen_again(levels, grid, done, count, most)
            begun = clock()
        data = np.asarray(look((all_params, filled(grid), done), (examples, carry)))[:size]
        pace.last = 0.5 * (pace.last + clock() - begun)
        if done:  # for the next call
            pace.step = stepping / done
        return data, len(grid.t)

    def draw_until(
        params: PyTree,
        index: Any,
        seconds: float | None = None,
        seed: Any = None,
        w: Any = None,
        early: int = 0,
        on_step: Callable[[int, np.ndarray], None] | None = None,
    ) -> Drawn:
        if seconds is not None:
            check_deadline(config)
        started, compiling = clock(), 0.0
        early, all_params = early if on_step is not None else 0, (params, weak, decoder())
        with precision(config.model.values().get("dtype")):
            examples, size = share_out(examples_of(index, seed, w))
            shapes = tuple(np.shape(a) for a in jax.tree.leaves(examples))
            key = (jax.tree.structure(examples), shapes)
            if key not in paces:
                measured(all_params, examples)  # which compiles
                paces[key] = measured(all_params, examples)
                started, compiling = clock(), clock() - started
            until = np.inf if seconds is None else started + seconds
            data, steps = drawing(all_params, examples, size, paces[key], until, early, on_step)
        return Drawn(data, steps, clock() - started, compiling)

    return draw_until


def draw_all(
    draw_until: Callable[..., Drawn],
    params: PyTree,
    num: int,
    batch_size: int,
    seconds: float | None = None,
    early: int = 0,
    on_step: Callable[[int, np.ndarray], None] | None = None,
) -> Drawn:
    """Samples 0 ... num - 1 in batches of one size, in `seconds` together; each batch has an equal
    part of what is left. The first batch has the early results. steps: of the last batch."""
    drawn: list[Drawn] = []
    batches = list(equal_batches(num, min(batch_size, num)))
    for i, (index, count) in enumerate(batches):
        left = None
        if seconds is not None:
            spent = sum(one.seconds for one in drawn)
            left = max(seconds - spent, 0.0) / (len(batches) - i)
        one = draw_until(params, index, left, early=0 if drawn else early, on_step=on_step)
        drawn.append(one._replace(data=one.data[:count]))
    return Drawn(
        np.concatenate([one.data for one in drawn]),
        drawn[-1].steps,
        sum(one.seconds for one in drawn),
        sum(one.compiling for one in drawn),
        min(one.steps for one in drawn),
    )
