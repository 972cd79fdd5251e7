"""Vectors to codes: the nearest of a codebook, learned by moving averages or by a loss (van den
Oord et al. 2017), and finite scalar quantisation, which has no codebook (Mentzer et al. 2023)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SMOOTHING = 1e-5  # of the counts by which sums are divided
MARGIN = 1e-3  # by which the outermost levels are reached before the tanh's end


class Counts(NamedTuple):
    """Moving averages over steps: how many vectors each code has, and their sums."""

    sizes: jax.Array  # [K]
    sums: jax.Array  # [K, d]


def nearest(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """The number, int32 [...], of the code of a codebook [K, d] that is nearest to z [..., d]."""
    product = jnp.matmul(z, codebook.T, precision="highest")
    return jnp.argmin(jnp.square(codebook).sum(axis=-1) - 2.0 * product, axis=-1).astype(jnp.int32)


def straight_through(z: jax.Array, quantized: jax.Array) -> jax.Array:
    """What z was quantised to, exactly, with the gradient of z itself (Bengio et al. 2013)."""
    return jax.lax.stop_gradient(quantized) + (z - jax.lax.stop_gradient(z))


def first_counts(codebook: jax.Array) -> Counts:
    """Every code has one vector, itself: none is divided by nothing, or thrown away by the first
    batch."""
    return Counts(jnp.ones(len(codebook)), jnp.array(codebook, jnp.float32))


def counted(counts: Counts, z: jax.Array, index: jax.Array, decay: float) -> Counts:
    """The averages after one more batch, of vectors [N, d] and the numbers [N] of their codes (van
    den Oord et al. 2017, appendix A.1). Sums are products of matrices, the same in every run."""
    chosen = jax.nn.one_hot(index, len(counts.sizes), dtype=jnp.float32)
    move = lambda old, new: decay * old + (1.0 - decay) * new
    sums = jnp.matmul(chosen.T, z, precision="highest")
    return Counts(move(counts.sizes, chosen.sum(axis=0)), move(counts.sums, sums))


def codebook_of(counts: Counts) -> jax.Array:
    """The codes [K, d], each the mean of its vectors, the counts smoothed so that none is 0."""
    total, smoothed = counts.sizes.sum(), counts.sizes + SMOOTHING
    sizes = smoothed * total / (total + len(counts.sizes) * SMOOTHING)
    return counts.sums / sizes[:, None]


def revived(counts: Counts, z: jax.Array, key: jax.Array, least: float) -> tuple[Counts, jax.Array]:
    """(the averages with a vector drawn from z [N, d], at size 1, in place of every code of a size
    below `least`, which of the codes [K] these were)."""
    dead = counts.sizes < least
    drawn = z[jax.random.randint(key, dead.shape, 0, len(z))]
    sizes = jnp.where(dead, 1.0, counts.sizes)
    return Counts(sizes, jnp.where(dead[:, None], drawn, counts.sums)), dead


def perplexity(sizes: jax.Array) -> jax.Array:
    """exp of the entropy of the codes' shares: how many codes, evenly used, would be as varied."""
    share = sizes / sizes.sum()
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def usage(sizes: jax.Array, decay: float) -> jax.Array:
    """The share of codes that one vector has had in the last 1 / (1 - decay) steps, or some before
    that; sizes that start at 1 count as used until they have decayed."""
    return jnp.mean(sizes >= (1.0 - decay) * math.exp(-1.0), dtype=jnp.float32)


def fsq_bounded(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """z [..., d] squeezed so that rounding gives as many whole numbers a channel as its level says
    (Mentzer et al. 2023, section 3.1): -L // 2 ... (L - 1) // 2. 0 stays 0."""
    count = np.array(levels, np.float32)
    half = (count - 1.0) * (1.0 + MARGIN) / 2.0
    offset = np.where(count % 2 == 0, np.float32(0.5), np.float32(0.0))
    return jnp.tanh(z + np.arctanh(offset / half)) * half - offset


def fsq(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """z [..., d] rounded to its levels, in [-1, 1], with the gradient of the bounded numbers."""
    bounded = fsq_bounded(z, levels)
    whole = straight_through(bounded, jnp.round(bounded))
    return whole / (np.array(levels, np.int32) // 2).astype(np.float32)


def fsq_index(z: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """The number of z's code [...], 0 ... prod(levels) - 1; the first channel counts in ones."""
    half = np.array(levels, np.int32) // 2
    digits = jnp.round(fsq_bounded(z, levels)).astype(jnp.int32) + half
    return jnp.sum(digits * np.cumprod((1, *levels[:-1])).astype(np.int32), axis=-1)
