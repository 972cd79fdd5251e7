"""Pixels there and back: bytes exactly, floats in their own units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.codecs import pixels
from diffusion_jax.data.spec import Declared

BYTES = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


def codec_of(between=None):
    return pixels(Declared((16, 16, 1), 0, between))


def test_bytes_span_the_range():
    found = codec_of().encode((), None, np.array([0, 255, 51], np.uint8))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, [-1.0, 1.0, -0.6], atol=1e-6)


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_every_byte_comes_back(place):
    codec = codec_of()
    x0 = codec.encode(codec.params, None, place(BYTES))
    found = codec.decode(codec.params, place(x0))
    assert isinstance(found, jax.Array if place is jnp.asarray else np.ndarray)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, BYTES)


def test_decoding_bytes_clips_and_rounds():
    x0 = np.array([-1.5, 1.5, 0.0, 2 * 100.4 / 255 - 1, 2 * 100.6 / 255 - 1], np.float32)
    np.testing.assert_array_equal(codec_of().decode((), x0), [0, 255, 128, 100, 101])


@pytest.mark.parametrize("between", [(0.0, 1.0), (-1.0, 1.0), (-3.0, 5.0), (200.0, 1000.0)])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_floats_come_back_in_their_units(between, place):
    codec, (low, high) = codec_of(between), between
    data = place(np.linspace(low, high, 11, dtype=np.float32))
    x0 = codec.encode(codec.params, None, data)
    np.testing.assert_allclose(x0, np.linspace(-1, 1, 11), atol=1e-5)
    found = codec.decode(codec.params, place(x0))
    assert isinstance(found, jax.Array if place is jnp.asarray else np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, data, rtol=1e-5, atol=1e-6 * (high - low))


def test_floats_beyond_their_range_are_not_clipped():
    found = codec_of((-3.0, 5.0)).decode((), np.array([-1.5, 1.5], np.float32))
    np.testing.assert_allclose(found, [-5.0, 7.0])


def test_bins_and_range_and_shape_are_of_the_data():
    assert codec_of()[2:5] == ((16, 16, 1), (-1.0, 1.0), 256)
    assert codec_of((0.0, 255.0))[2:5] == ((16, 16, 1), (-1.0, 1.0), None)


def test_equal_data_have_an_equal_codec():
    assert codec_of() == codec_of() and hash(codec_of()) == hash(codec_of())
    assert codec_of() != codec_of((0.0, 1.0))
