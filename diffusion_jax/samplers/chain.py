"""The loops over a reverse chain: `sample`, `progressive` for screens, `invert` for the way back."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import noise
from diffusion_jax.samplers.first_order import ddim
from diffusion_jax.types import Array, Denoiser, Level, Sampler


class Path(NamedTuple):
    """What a chain passed through on a grid of N levels."""

    x: jax.Array  # [N + 1, B, ...], x at every level, then the result
    x0: jax.Array  # [N, B, ...], the x0 predicted at every level; the last is the result


def _stepper(sampler: Sampler, denoiser: Denoiser, keys: jax.Array | None, grid: Level):
    """(level, step): level i of the grid, and (x, state), i -> (x, state) one level cleaner."""
    grid = Level(*map(jnp.asarray, grid))
    level = lambda i: jax.tree.map(lambda a: a[i], grid)

    def step(carry, i):
        step_keys = None if keys is None else noise.fold_in(keys, i)
        return sampler.step(step_keys, denoiser, *carry, level(i), level(i + 1))

    return level, step


def sample(sampler: Sampler, denoiser: Denoiser, keys: jax.Array, x_init: Array, grid: Level, trajectory: bool = False):
    """Runs the reverse chain from x_init [B, ...], at grid's first level, to clean data x0 [B, ...].

    keys: [B], one per example. grid: levels [N], noisy to clean; N - 1 steps are scanned and the last level's x0 is
    returned, so that the network is called N times by a one-call sampler. With trajectory the result is (x0, `Path`).
    """
    level, step = _stepper(sampler, denoiser, keys, grid)
    last = len(grid.t) - 1

    def body(carry, i):
        # the step asks for the same prediction; the compiler computes it once
        return step(carry, i), ((carry[0], denoiser(carry[0], level(i)).x0) if trajectory else None)

    (x, _), seen = jax.lax.scan(body, (x_init, sampler.init(x_init, level(0))), jnp.arange(last))
    x0 = denoiser(x, level(last)).x0
    if seen is None:
        return x0
    return x0, Path(jnp.concatenate([seen[0], x[None], x0[None]]), jnp.concatenate([seen[1], x0[None]]))


def progressive(
    sampler: Sampler, denoiser: Denoiser, keys: jax.Array, x_init: Array, grid: Level, every: int = 1
) -> Iterator[tuple[int, jax.Array, jax.Array]]:
    """`sample` for a screen: yields (steps taken, x, the x0 predicted from it) after every so many steps.

    The last x0 is the result of `sample`. Compiled once, whatever `every`, which is at least 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    level, step = _stepper(sampler, denoiser, keys, grid)

    @jax.jit
    def run(carry, start, stop):
        carry = jax.lax.fori_loop(start, stop, lambda i, carry: step(carry, i), carry)
        return carry, denoiser(carry[0], level(stop)).x0

    last, taken = len(grid.t) - 1, 0
    carry = (jnp.asarray(x_init), sampler.init(x_init, level(0)))
    while True:
        stop = min(taken + every, last)
        carry, x0 = run(carry, taken, stop)
        taken = stop
        yield taken, carry[0], x0
        if taken == last:
            return


def invert(denoiser: Denoiser, x: Array, grid: Level, sampler: Sampler | None = None) -> jax.Array:
    """A deterministic sampler run backwards: encodes x [B, ...], at grid's last level, as x at its first, noisiest one.

    `sample` with the same sampler on the same grid comes back to x, the closer the finer the grid. grid: levels [N], noisy
    to clean. sampler: one that takes any two levels, by default `ddim()` (Song et al. 2021, eq. 14).
    """
    backwards = Level(*(jnp.asarray(a)[::-1] for a in grid))
    sampler = ddim() if sampler is None else sampler
    level, step = _stepper(sampler, denoiser, None, backwards)
    body = lambda carry, i: (step(carry, i), None)
    return jax.lax.scan(body, (x, sampler.init(x, level(0))), jnp.arange(len(grid.t) - 1))[0][0]


def num_steps_for(draw: Callable[[int], Array], tolerance: float, start: int = 5, most: int = 1280) -> tuple[int, float]:
    """(the number of steps, its error): the least of start, 2 start, 4 start ... whose samples are within a tolerance.

    draw: num_steps -> samples [B, ...] of a deterministic sampler, from the same noise. The error, root mean square, is
    estimated as the difference from twice the steps, which for any order is at least half of it. Raises ValueError where
    `most` steps are not enough, as with samplers that draw noise.
    """
    if tolerance <= 0:
        raise ValueError(f"a tolerance is above 0, not {tolerance}")
    num_steps, coarse, error = start, draw(start), float("inf")
    while 2 * num_steps <= most:
        fine = draw(2 * num_steps)
        error = float(jnp.sqrt(jnp.mean((fine - coarse) ** 2)))
        if error <= tolerance:
            return num_steps, error
        num_steps, coarse = 2 * num_steps, fine
    raise ValueError(
        f"samples of {num_steps // 2} and {num_steps} steps differ by {error:.2g}, above the tolerance of {tolerance:.2g}"
    )
