"""The loops over a reverse chain: `sample`, `progressive` for screens, `invert` for the way
back."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from diffusion_jax.core import noise
from diffusion_jax.core.components import is_component
from diffusion_jax.core.grids import finite
from diffusion_jax.core.types import Array, Denoiser, Level, Sampler
from diffusion_jax.denoisers.network import of_networks
from diffusion_jax.samplers.first_order import ddim


class Path(NamedTuple):
    """What a chain passed through on a grid of N levels."""

    x: jax.Array  # [N + 1, B, ...], x at every level, then the result
    x0: jax.Array  # [N, B, ...], the x0 predicted at every level; the last is the result


def _start(sampler: Sampler, denoiser: Denoiser, keys: jax.Array | None, x: Array, grid: Level):
    """(carry, level, step): (x, state) at the grid's start, level i, and (carry, i) -> carry one
    level on.

    All of it in x's precision, float32 at least.
    """
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if keys is not None and jnp.issubdtype(keys.dtype, jnp.uint32):
        keys = noise.threefry(keys)  # legacy keys [B, 2]
    if keys is not None and keys.shape != x.shape[:1]:
        if draws_noise(sampler):
            raise ValueError(
                f"keys have the shape {keys.shape}: one key is needed for each of {x.shape[0]} "
                "examples"
            )
        keys = None
    same = lambda a: a.astype(x.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    grid = finite(Level(*(same(jnp.asarray(a)) for a in grid)))
    level = lambda i: jax.tree.map(lambda a: a[i], grid)

    def step(carry, i, t=None, denoiser=denoiser):
        t = level(i) if t is None else t
        step_keys = None if keys is None else noise.fold_in(keys, i)
        after = sampler.step(step_keys, denoiser, *carry, t, level(i + 1))
        return jax.tree.map(lambda a, b: a.astype(b.dtype), after, carry)

    return jax.tree.map(jnp.asarray, (x, sampler.init(x, level(0)))), level, step


def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    keys: jax.Array | None,
    x_init: Array,
    grid: Level,
    trajectory: bool = False,
) -> Any:
    """Runs the reverse chain from x_init [B, ...], at grid's first level, to clean data x0 [B,
    ...].

    keys: [B], one per example; any, or None, for a sampler that draws no noise. grid: levels [N],
    noisy to clean; N - 1 steps are scanned and the last level's x0 is returned, so that the network
    is called N times by a one-call sampler. With trajectory the result is (x0, `Path`), at no
    further call where a step begins with the prediction at its x. Raises ValueError for another
    number of keys than examples.

    Compiled once for a sampler of `SAMPLERS` and the shapes of the rest, where the denoiser is one
    that `denoisers` makes of networks. With other functions of Python a chain is compiled in every
    call: call `sample` in a jitted function of your own."""
    chain = _compiled if _can_be_compiled(sampler, denoiser, keys, x_init, grid) else _sample
    return chain(sampler, denoiser, keys, x_init, grid, trajectory)


def _can_be_compiled(sampler: Sampler, denoiser: Denoiser, *others: Any) -> bool:
    """Whether a chain's arguments are components and arrays, and none is traced already.

    Functions made in every call would fill the cache, and with them what they hold."""
    arrays = (jax.Array, np.ndarray, np.generic, int, float)
    leaves, structure = jax.tree.flatten((denoiser, others))
    if not (is_component(sampler) and of_networks(denoiser)):
        return False
    try:
        hash((sampler, structure))
    except TypeError:
        return False
    return all(isinstance(a, arrays) and not isinstance(a, core.Tracer) for a in leaves)


def _sample(
    sampler: Sampler, denoiser: Denoiser, keys, x_init: Array, grid: Level, trajectory: bool
) -> Any:
    carry, level, step = _start(sampler, denoiser, keys, x_init, grid)
    last = len(grid.t) - 1

    at_last = final(sampler, denoiser)

    def body(carry, i):
        if not trajectory:
            return step(carry, i), None
        x, t = carry[0], level(i)
        here = at_last(x, t)
        if sampler.last is not None:
            return step(carry, i, t), (x, here.x0)
        known = lambda y, level: here if y is x and level is t else denoiser(y, level)
        return step(carry, i, t, known), (x, here.x0)

    (x, _), seen = jax.lax.scan(body, carry, jnp.arange(last))
    x0 = at_last(x, level(last)).x0
    if seen is None:
        return x0
    return x0, Path(
        jnp.concatenate([seen[0], x[None], x0[None]]), jnp.concatenate([seen[1], x0[None]])
    )


@functools.partial(jax.jit, static_argnums=(0, 5))
def _compiled(sampler: Sampler, denoiser: Denoiser, keys, x_init, grid: Level, trajectory: bool):
    return _sample(sampler, denoiser, keys, x_init, grid, trajectory)


def begin(
    sampler: Sampler, denoiser: Denoiser, keys: jax.Array | None, x_init: Array, grid: Level
) -> Any:
    """What `advance` carries from the first level of a grid on: (x [B, ...], the sampler's
    state). The arguments are those of `sample`."""
    return _start(sampler, denoiser, keys, x_init, grid)[0]


def advance(
    sampler: Sampler,
    denoiser: Denoiser,
    keys: jax.Array | None,
    carry: Any,
    grid: Level,
    start: Any,
    stop: Any,
) -> Any:
    """What `begin` returned, from level number `start` of the grid on to number `stop`.

    start, stop: whole numbers, which may be traced, as may the grid: what is compiled takes any
    grid of as many levels. Step number i draws noise by the keys of i, so that pieces make up the
    chain of `sample`."""
    _, _, step = _start(sampler, denoiser, keys, carry[0], grid)
    return jax.lax.fori_loop(start, stop, lambda i, carry: step(carry, i), carry)


def final(sampler: Sampler, denoiser: Denoiser) -> Denoiser:
    """The denoiser of a chain's last hop, to clean data."""
    return denoiser if sampler.last is None else sampler.last(denoiser)


def look(denoiser: Denoiser, carry: Any, grid: Level, i: Any) -> jax.Array:
    """The x0 [B, ...] predicted at level number i, in one call; with the denoiser that `final`
    returns, at the last level it is the result of `sample`."""
    _, level, _ = _start(ddim(), denoiser, None, carry[0], grid)
    return denoiser(carry[0], level(i)).x0


def progressive(
    sampler: Sampler,
    denoiser: Denoiser,
    keys: jax.Array | None,
    x_init: Array,
    grid: Level,
    every: int = 1,
) -> Iterator[tuple[int, jax.Array, jax.Array]]:
    """`sample` for a screen: yields (steps taken, x, the x0 predicted from it) after every so many
    steps.

    The last x0 is the result of `sample`. Compiled once, whatever `every`, which is at least 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    carry = begin(sampler, denoiser, keys, x_init, grid)

    @jax.jit
    def run(carry, start, stop):
        carry = advance(sampler, denoiser, keys, carry, grid, start, stop)
        return carry, look(final(sampler, denoiser), carry, grid, stop)

    last, taken = len(grid.t) - 1, 0
    while True:
        stop = min(taken + every, last)
        carry, x0 = run(carry, taken, stop)
        taken = stop
        yield taken, carry[0], x0
        if taken == last:
            return


def invert(denoiser: Denoiser, x: Array, grid: Level, sampler: Sampler | None = None) -> jax.Array:
    """A deterministic sampler run backwards: encodes x [B, ...], at grid's last level, as x at its
    first, noisiest one.

    `sample` with the same sampler on the same grid comes back to x, the closer the finer the grid.
    grid: levels [N], noisy to clean. sampler: one that takes any two levels, by default `ddim()`
    (Song et al. 2021, eq. 14). Raises ValueError for one that draws noise, and for `flow_map`,
    which goes to cleaner levels alone."""
    if sampler is not None and sampler.last is not None:
        raise ValueError("a flow map goes to cleaner levels alone: invert by ddim or heun_flow")
    backwards = Level(*(jnp.asarray(a)[::-1] for a in grid))
    carry, _, step = _start(ddim() if sampler is None else sampler, denoiser, None, x, backwards)
    return jax.lax.scan(
        lambda carry, i: (step(carry, i), None), carry, jnp.arange(len(grid.t) - 1)
    )[0][0]


def draws_noise(sampler: Sampler) -> bool:
    """Whether the sampler's steps draw noise, and so need keys."""
    return sampler.draws_noise


def num_steps_for(
    draw: Callable[[int], Array], tolerance: float, start: int = 5, most: int = 1280
) -> tuple[int, float]:
    """(the number of steps, its error): the least of start, 2 start, 4 start ... whose samples are
    within a tolerance.

    draw: num_steps -> samples [B, ...] of a deterministic sampler, from the same noise. The error,
    root mean square, is estimated as the difference from twice the steps, which for any order is at
    least half of it. Raises ValueError where `most` steps are not enough, as with samplers that
    draw noise."""
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
        f"samples of {num_steps // 2} and {num_steps} steps differ by {error:.2g}, "
        f"above the tolerance of {tolerance:.2g}"
    )
