"""A chain that begins at half the height and width, with the same network, where the noise hides
the detail anyway.

D takes the means of 2 x 2 pixels, U repeats each pixel 2 x 2 times, so that D U = 1. Of
x = alpha x0 + sigma eps the means are D x = alpha D x0 + sigma D eps, and D eps is white of the
deviation 1/2. So the half-size image of an x whose noise is sigma / alpha = r is an image D x0
with noise of r / 2: its log-SNR is greater by 2 log 2. Every level of a grid is *matched* at half
size by the schedule's level (alpha_h, sigma_h) with sigma_h / alpha_h = r / 2, and a chain over
these levels samples y = alpha_h D x0 + sigma_h eps_h.

Back at full size, eps = U D eps + (1 - U D) eps is the sum of two independent parts, the first of
which has the law of U eps_h / 2. So

    x / alpha = U y / alpha_h + r (1 - U D) eps = U D x0 + r (U eps_h / 2 + (1 - U D) eps)

with fresh eps has noise that is white of exactly the deviation r, and D x = alpha y / alpha_h: the
chain goes on where it was, with x0 and its noise doubled, and only what doubling lacks is drawn.
It differs from an x of the full-size chain by the detail (1 - U D) x0, which is not there yet: of
a deviation d it is hidden where d is well below r. Of Gaussian detail the probability-flow ODE
makes the deviation d r / sqrt(r^2 + d^2) in the end."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import noise
from diffusion_jax.core.grids import at_logsnr
from diffusion_jax.core.types import Array, Denoiser, Level, Sampler, Schedule
from diffusion_jax.samplers.chain import advance, begin, sample


def matched(schedule: Schedule, grid: Level, until: float) -> Level:
    """The levels of a grid, up to the first whose log-SNR is at least `until`, as images of half
    the size meet them: of a log-SNR greater by 2 log 2, between the indices of a table."""
    logsnr = np.asarray(grid.logsnr)
    count = min(int(np.sum(logsnr < until)) + 1, len(logsnr))
    wanted = logsnr[:count] + 2.0 * math.log(2.0)
    with jax.ensure_compile_time_eval():
        most = float(schedule.level(schedule.t_min).logsnr)
    if wanted[-1] > most + 1e-3:
        raise ValueError(
            f"images are doubled at a log-SNR of at most {most - 2.0 * math.log(2.0):.3g} of this "
            f"schedule, not {until:g}"
        )
    return at_logsnr(schedule, wanted)


def halved(x: Array) -> jax.Array:
    """The means of 2 x 2 pixels of x [B, H, W, C]; the D of this module."""
    b, h, w, c = x.shape
    return jnp.reshape(x, (b, h // 2, 2, w // 2, 2, c)).mean(axis=(2, 4))


def doubled(x: Array) -> jax.Array:
    """Every pixel of x [B, H, W, C] 2 x 2 times; the U of this module."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def enlarged(keys: jax.Array, y: Array, half: Level, whole: Level) -> jax.Array:
    """x [B, 2 H, 2 W, C] at the level `whole` from y [B, H, W, C] at the matched level `half`,
    whose means of 2 x 2 pixels are y's; keys [B] draw the noise that doubling lacks."""
    b, h, w, c = y.shape
    eps = noise.normal(keys, (2 * h, 2 * w, c))
    added = whole.sigma * (eps - doubled(halved(eps)))
    # alpha / alpha_h, by the ratios of the noise, so that it is finite at alpha = 0
    return 0.5 * whole.sigma / half.sigma * doubled(y) + added.astype(y.dtype)


def sample_from_half(
    sampler: Sampler,
    denoiser: Denoiser,
    keys: jax.Array,
    y_init: Array,
    half_grid: Level,
    grid: Level,
) -> jax.Array:
    """Runs the reverse chain from y_init [B, H, W, C], at half_grid's first level, to clean data
    x0 [B, 2 H, 2 W, C].

    denoiser: of images of both sizes. keys: [B], also for a sampler that draws no noise. half_grid:
    the levels that `matched` makes of the first of `grid`; the chain goes on at full size from the
    last of these levels, with the sampler's state anew. ValueError where
    half_grid is longer than grid."""
    last = len(half_grid.t) - 1
    if last >= len(grid.t):
        raise ValueError(f"{last + 1} levels at half size of a grid of {len(grid.t)}")
    before, between, after = (noise.fold_in(keys, i) for i in range(3))
    carry = begin(sampler, denoiser, before, y_init, half_grid)
    y = advance(sampler, denoiser, before, carry, half_grid, 0, last)[0]
    half, whole = (Level(*(a[last] for a in levels)) for levels in (half_grid, grid))
    x = enlarged(between, y, half, whole)
    rest = Level(*(jnp.asarray(a)[last:] for a in grid))
    return sample(sampler, denoiser, after, x, rest)
