"""Editing given images with the chains of `samplers`: from a noised image, from an inverted one,
around known pixels."""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax import samplers
from diffusion_jax.core.noise import fold_in, normal
from diffusion_jax.core.process import q_sample, q_step
from diffusion_jax.core.types import Array, Denoiser, Level, Sampler


def noised(keys: jax.Array, x0: Array, grid: Level, strength: float) -> tuple[jax.Array, Level]:
    """x0 [B, ...] noised `strength` of the way up the grid, and the rest of the grid, which starts
    there.

    keys: [B]. strength, in (0, 1], is the share of the grid's levels that is left, at least one of
    them; else ValueError."""
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength must be above 0 and at most 1, not {strength}")
    count = len(grid.t)
    first = count - max(1, round(strength * count))
    rest = Level(*(jnp.asarray(a)[first:] for a in grid))
    return q_sample(x0, normal(keys, jnp.shape(x0)[1:]), jax.tree.map(lambda a: a[0], rest)), rest


def image_to_image(
    sampler: Sampler, denoiser: Denoiser, keys: jax.Array, x0: Array, grid: Level, strength: float
) -> jax.Array:
    """SDEdit: x0 [B, ...] noised part of the way and drawn from there (Meng et al. 2022, algorithm
    1).

    keys: [B]. strength, in (0, 1], else ValueError: see `noised`, to which fold_in(keys, 0) go.
    Near 0 the result is x0, at 1 a new sample."""
    x, rest = noised(fold_in(keys, 0), x0, grid, strength)
    result: Any = samplers.sample(sampler, denoiser, fold_in(keys, 1), x, rest)
    return result


def encode(denoiser: Denoiser, x0: Array, grid: Level, sampler: Sampler) -> jax.Array:
    """The latent of x0 [B, ...] at the grid's noisiest level: the probability flow upwards (Song et
    al. 2021, section 5.4).

    The flow starts at the grid's cleanest level from x = alpha x0, without noise. sampler: a
    deterministic one."""
    return samplers.invert(denoiser, jnp.asarray(grid.alpha)[-1] * x0, grid, sampler)


def decode(denoiser: Denoiser, latent: Array, grid: Level, sampler: Sampler) -> jax.Array:
    """The image of a latent [B, ...]: the inverse of `encode`, up to the sampler's error.

    It is x / alpha at the grid's cleanest level; `samplers.sample` makes one more hop, to the
    denoiser's x0, which `encode` knows nothing of."""
    upwards = Level(*(jnp.asarray(a)[::-1] for a in grid))  # whose inversion leads down
    return samplers.invert(denoiser, latent, upwards, sampler) / jnp.asarray(grid.alpha)[-1]


def reconstruct(
    denoiser: Denoiser, x0: Array, grid: Level, sampler: Sampler
) -> tuple[jax.Array, jax.Array]:
    """(the latent of x0 [B, ...], the image of this latent), `encode` and `decode` (Song et al.
    2021, section 5.4).

    The image differs from x0 by the sampler's error alone, whatever the denoiser: with more steps
    it vanishes."""
    latent = encode(denoiser, x0, grid, sampler)
    return latent, decode(denoiser, latent, grid, sampler)


def translate(
    source: Denoiser, target: Denoiser, x0: Array, grid: Level, sampler: Sampler
) -> jax.Array:
    """x0 [B, ...] of the data of `source` as one of those of `target`, by a dual diffusion implicit
    bridge.

    Encoded with `source` and decoded with `target` (Su et al. 2023, algorithm 1); the way back is
    translate(target, source)."""
    return decode(target, encode(source, x0, grid, sampler), grid, sampler)


def interpolate(a: Array, b: Array, fractions: Array) -> jax.Array:
    """Latents [F, ...] at fractions [F] of the way from a [...] to b [...] on a sphere (Song et al.
    2021, eq. 67).

    Where a and b are parallel the way is straight; so it is where they are opposite, and the
    shortest way is not unique."""
    norm = lambda x: jnp.sqrt(jnp.sum(x**2))
    unit = lambda x: x / jnp.maximum(norm(x), jnp.finfo(x.dtype).tiny)
    a, b = jnp.asarray(a), jnp.asarray(b)
    f = jnp.asarray(fractions).reshape((-1,) + (1,) * a.ndim)
    theta = 2.0 * jnp.arctan2(
        norm(unit(a) - unit(b)), norm(unit(a) + unit(b))
    )  # arccos loses half the digits near 0
    sine = jnp.sin(theta)
    straight = sine < 1e-4  # where the two ways differ by less than rounding
    divisor = jnp.where(straight, 1.0, sine)
    weight = lambda f: jnp.where(straight, f, jnp.sin(f * theta) / divisor)
    return weight(1.0 - f) * a + weight(f) * b


def repaint(sampler: Sampler, x0: Array, mask: Array, resamples: int = 10) -> Sampler:
    """RePaint: a sampler whose every step keeps to the known pixels (Lugmayr et al. 2022, algorithm
    1).

    mask: broadcasts with x0 [B, ...], 1 where x0 is known. A step is taken `resamples` times and,
    but for the last, undone by fresh noise, so that the known and the painted part can meet. That
    repeats a sampler's own bias, too: ancestral's fixed_large keeps the spread of what is painted,
    fixed_small loses some. A method with a memory starts anew in every step, since what it
    remembers is of another x. ValueError for resamples < 1."""
    if resamples < 1:
        raise ValueError(f"a step is taken 1 time or more, not {resamples}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        def once(keys, x):
            painted, _ = sampler.step(fold_in(keys, 0), denoiser, x, sampler.init(x, t), t, s)
            known = q_sample(x0, normal(fold_in(keys, 1), x.shape[1:]), s)
            return jnp.where(jnp.asarray(mask) > 0, known, painted).astype(x.dtype)

        def again(x, u):
            own = fold_in(keys, u)
            return q_step(once(own, x), normal(fold_in(own, 2), x.shape[1:]), s, t).astype(
                x.dtype
            ), None

        x, _ = jax.lax.scan(again, x, jnp.arange(resamples - 1))
        return once(fold_in(keys, resamples - 1), x), state

    return Sampler(lambda x, level: (), step, draws_noise=True, last=sampler.last)


def inpaint(
    sampler: Sampler,
    denoiser: Denoiser,
    keys: jax.Array,
    x_init: Array,
    x0: Array,
    mask: Array,
    grid: Level,
    resamples: int = 10,
) -> jax.Array:
    """x0 [B, ...] with the pixels painted anew where mask is 0, by `repaint`; those where it is 1
    are x0's exactly.

    keys: [B]. x_init: noise [B, ...] at the grid's first level.
    """
    painted: Any = samplers.sample(
        repaint(sampler, x0, mask, resamples), denoiser, keys, x_init, grid
    )
    return jnp.where(jnp.asarray(mask) > 0, x0, painted)
