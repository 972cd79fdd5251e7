"""Decoding in overlapping tiles, so that memory is that of a tile."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FRESH = 0.75  # of a tile, at most, that the tile before did not have


def cut(length: int, most: int) -> tuple[np.ndarray, int]:
    """(where tiles begin, int [n]; their size): as few as can be of `most` or less, evenly spread,
    and no larger than it takes for two neighbours to share a quarter."""
    if length <= most:
        return np.zeros(1, int), length
    count = 1 + math.ceil((length - most) / (FRESH * most))
    size = math.ceil(length / (1 + FRESH * (count - 1)))
    return np.round(np.linspace(0, length - size, count)).astype(int), size


def ramps(length: int, most: int, factor: int) -> np.ndarray:
    """The weight of each tile at each of its pixels, float32 [n, size * factor]: linear where two
    tiles overlap; at every pixel all weights sum to 1."""
    begins, tile = cut(length, most)
    first, size = begins * factor, tile * factor
    own = np.ones((len(first), size))
    at = np.arange(size) + 0.5
    for i in range(1, len(first)):
        shared = first[i - 1] + size - first[i]
        own[i] = np.minimum(own[i], at / shared)
        own[i - 1] = np.minimum(own[i - 1], (size - at) / shared)
    total = np.zeros(length * factor)
    for start, weights in zip(first, own, strict=True):
        total[start : start + size] += weights
    sums = np.stack([total[start : start + size] for start in first])
    return (own / sums).astype(np.float32)


def decode_in_tiles(
    decode: Callable[[Any], Any], z: jax.Array, factor: int, channels: int, tile: int
) -> jax.Array:
    """decode(z) -> [B, f H, f W, channels] of latents z [B, H, W, c], in tiles of at most `tile` x
    `tile` latents, one after the other; latents no larger than that are decoded whole.

    Tiles overlap by a quarter or more and are blended linearly. Each sees itself alone, so that
    what a decoder computes of the whole image, as group norm and attention do, differs from tile
    to tile."""
    batch, height, width, depth = z.shape
    if height <= tile and width <= tile:
        return decode(z)
    (rows, tall), (columns, wide) = cut(height, tile), cut(width, tile)
    down, along = ramps(height, tile, factor), ramps(width, tile, factor)
    size = (batch, tall, wide, depth)

    def one(canvas, number):
        i, j = number // len(columns), number % len(columns)
        top, left = jnp.asarray(rows)[i], jnp.asarray(columns)[j]
        image = decode(jax.lax.dynamic_slice(z, (0, top, left, 0), size))
        weight = jnp.asarray(down)[i, :, None, None] * jnp.asarray(along)[j, None, :, None]
        where = (0, top * factor, left * factor, 0)
        before = jax.lax.dynamic_slice(canvas, where, image.shape)
        return jax.lax.dynamic_update_slice(canvas, before + weight * image, where), None

    canvas = jnp.zeros((batch, height * factor, width * factor, channels), jnp.float32)
    return jax.lax.scan(one, canvas, jnp.arange(len(rows) * len(columns)))[0]
