"""Floats in units of their deviation, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.codecs import floats
from diffusion_jax.data.spec import Declared

DATA = np.random.default_rng(0).normal(3.0, 0.25, (64, 5)).astype(np.float32)


@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_they_have_no_mean_and_unit_deviation_and_come_back(place):
    codec = floats(Declared((5,), dtype="float32"), mean=3.0, deviation=0.25)
    x0 = codec.encode(codec.params, None, place(DATA))
    np.testing.assert_allclose(x0, (np.float64(DATA) - 3.0) / 0.25, atol=1e-5)
    found = codec.decode(codec.params, place(x0))
    assert isinstance(found, jax.Array if place is jnp.asarray else np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, DATA, atol=1e-6)


def test_they_have_no_range_and_no_bins():
    assert floats(Declared((5,), dtype="float32"))[2:5] == ((5,), None, None)


def test_what_they_are_not_for_is_refused():
    with pytest.raises(ValueError, match="8-bit data have the codec pixels"):
        floats(Declared((5,)))
    with pytest.raises(ValueError, match="deviation must be above 0, not 0"):
        floats(Declared((5,), dtype="float32"), deviation=0.0)
