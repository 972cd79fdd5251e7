"""Decoding in tiles: the same numbers where a decoder is local, no seams where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.codecs.tiles import cut, decode_in_tiles, ramps

FACTOR, TILE = 4, 16


def doubled(z):
    """A decoder that looks at one latent a pixel."""
    return jnp.sin(z).repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)


@pytest.mark.parametrize("length", [16, 17, 31, 40, 64])
def test_weights_are_linear_and_sum_to_one(length):
    (first, size), weights = cut(length, TILE), ramps(length, TILE, FACTOR)
    assert first[0] == 0 and first[-1] == length - size and size <= TILE
    assert (np.diff(first) <= size - size // 4).all()  # a quarter overlaps
    total = np.zeros(length * FACTOR)
    for start, own in zip(first * FACTOR, weights, strict=True):
        total[start : start + size * FACTOR] += own
        assert (own > 0).all()
    np.testing.assert_allclose(total, 1.0, rtol=1e-6)
    if length == 40:  # tiles at 0, 12 and 24, of which two at most overlap: 16 pixels
        np.testing.assert_allclose(np.diff(weights[0][-16:]), -1 / 16, atol=1e-6)


def test_a_local_decoder_gives_the_same_image():
    z = np.random.default_rng(0).normal(size=(2, 40, 21, 3)).astype(np.float32)
    found = decode_in_tiles(doubled, jnp.asarray(z), FACTOR, 3, TILE)
    expected = np.sin(z).repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_tiles_differ_by_has_no_seam():
    """A decoder that takes off a tile's own mean, as group norm does, of latents that rise from
    edge to edge: tiles then differ by their means. Blended over 16 pixels or more, a pixel's share
    of that is 1/16, not all at one edge."""
    rise = np.linspace(-1, 1, 40, dtype=np.float32)[None, :, None, None]
    z = jnp.broadcast_to(rise, (1, 40, 40, 1))
    centred = lambda z: doubled(z - z.mean(axis=(1, 2, 3), keepdims=True))
    tiled = np.asarray(decode_in_tiles(centred, z, FACTOR, 1, TILE))[0, :, 0, 0]
    apart = 12 * 2 / 39  # of two neighbours' means: tiles begin 12 latents apart
    own = 2 / 39  # a latent's step of the data
    assert np.abs(np.diff(tiled)).max() < 1.1 * (apart / 16 + own)


def test_memory_is_that_of_a_tile():
    kernel = jnp.ones((3, 3, 4, 64)), jnp.ones((3, 3, 64, 3))

    def decode(z):
        h = z.repeat(FACTOR, axis=1).repeat(FACTOR, axis=2)
        for one in kernel:
            layout = ("NHWC", "HWIO", "NHWC")
            h = jax.lax.conv_general_dilated(h, one, (1, 1), "SAME", dimension_numbers=layout)
        return h

    def temporary(function):
        z = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)
        memory = jax.jit(function).lower(z).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    tiled = lambda z: decode_in_tiles(decode, z, FACTOR, 3, TILE)
    assert temporary(tiled) < temporary(decode) / 3
