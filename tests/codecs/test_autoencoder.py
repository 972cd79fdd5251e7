"""The codec of latents, with an autoencoder whose numbers are known: the mean of 2 x 2 pixels,
times 3 less 1, and a stated deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.codecs import Autoencoders, Coder, autoencoder
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import example_keys, key
from diffusion_jax.data.spec import Declared

SHAPE, SCALE = (4, 4, 1), 3.0
DEVIATION = 0.8  # of a latent's distribution
OPENED = []


def encode(params, x):
    b, h, w, _ = x.shape
    mean = params["scale"] * x.reshape(b, h // 2, 2, w // 2, 2, 1).mean(axis=(2, 4)) - 1.0
    return jnp.concatenate([mean, jnp.full_like(mean, 2 * np.log(DEVIATION))], axis=-1)


def decode(params, z):
    return ((z + 1.0) / params["scale"]).repeat(2, axis=1).repeat(2, axis=2)


def opened(run, weights):
    OPENED.append((run, weights))
    params = {"scale": jnp.float32(SCALE), "unused": jnp.zeros(100_000)}
    return Coder(encode, decode, params, 2, 1, 2, 1, sha256="abcdef")


def codec(shape=SHAPE, **settings):
    values = {"run": "x", "factor": 2, "latent": 1, "mean": (-1.0,), "deviation": (2.0,)}
    return autoencoder(Declared(shape), Autoencoders(opened), **(values | settings))


def blocks():
    """Images uint8 whose 2 x 2 blocks are of one value."""
    values = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 1)).astype(np.uint8)
    return values.repeat(2, axis=1).repeat(2, axis=2)


def test_shapes_need_no_autoencoder():
    before = len(OPENED)
    one = codec(run="elsewhere")
    assert (one.shape, one.kept, one.range, one.bins) == ((2, 2, 1), (2, 2, 2), None, None)
    assert len(OPENED) == before


def test_images_there_and_back():
    one, images = codec(), blocks()
    x0 = one.encode(one.params, None, images)
    z = SCALE * (images[:, ::2, ::2] / 127.5 - 1.0) - 1.0
    np.testing.assert_allclose(x0, (z + 1.0) / 2.0 * 0.5, atol=1e-5)  # whitened: less mean, over d
    for there in (x0, np.asarray(x0)):
        found = one.decode(one.params, there)
        assert isinstance(found, np.ndarray) == isinstance(there, np.ndarray)
        np.testing.assert_array_equal(found, images)


def test_latents_are_drawn_and_whitened():
    """Latents kept with mean N(-1, 1.5^2) and deviation 0.8 have the deviation 1.7: draws of them
    have mean 0 and deviation 0.5, each by its own key."""
    one = codec(deviation=(1.7,), run="other")
    mean = np.random.default_rng(1).normal(-1.0, 1.5, (20_000, 2, 2, 1))
    moments = np.concatenate([mean, np.full_like(mean, 2 * np.log(0.8))], axis=-1)
    moments, keys = moments.astype(np.float16), example_keys(key(0), np.arange(len(mean)))
    x0 = np.asarray(one.encode((), keys, moments))
    assert abs(x0.mean()) < 0.01 and abs(x0.std() - 0.5) < 0.01
    again = one.encode((), keys[5:7], moments[5:7])
    np.testing.assert_array_equal(again, x0[5:7])
    without = one.encode((), None, moments[:2])
    np.testing.assert_allclose(without, (moments[:2, ..., :1] + 1.0) / 1.7 * 0.5, rtol=1e-3)
    unit = codec(deviation=(1.7,), sigma_data=1.0).encode((), keys, moments)
    np.testing.assert_allclose(unit, 2 * x0, rtol=1e-5)


def test_latents_that_are_points_are_kept_as_they_are():
    points = codec(normal_latents=False, run="points")
    z = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)
    keys = example_keys(key(0), np.arange(3))
    np.testing.assert_allclose(points.encode((), keys, z), (z + 1.0) / 2.0 * 0.5, rtol=1e-5)


def test_a_program_keeps_no_parameters():
    one = codec()
    images, x0 = jnp.zeros((1, *SHAPE), jnp.uint8), jnp.zeros((1, 2, 2, 1))
    for program, data in ((one.decode, x0), (one.moments, images)):
        consts = jax.make_jaxpr(program)(one.params, data).consts
        assert sum(np.size(a) for a in consts) < 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 4}, "config.codec.factor=4, but the autoencoder's is 2"),
        ({"latent": 2, "mean": (), "deviation": ()}, "config.codec.latent=2, but .* is 1"),
        ({"normal_latents": False}, "config.codec.normal_latents=False, but .* is True"),
        ({"shape": (4, 4, 3)}, "channels=3, but the autoencoder's is 1"),
        ({"sha256": "0" * 64}, "another one than this run's: .* abcdef..., not 000000000000..."),
    ],
)
def test_another_autoencoder_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        _ = codec(**settings).params


def test_missing_statistics_and_wrong_shapes_are_refused():
    with pytest.raises(UserError, match="mean and .deviation are empty"):
        codec(mean=(), deviation=()).encode((), None, np.zeros((1, 2, 2, 2), np.float32))
    with pytest.raises(ValueError, match=r"latents must be \(2, 2, 2\), not \(2, 3, 2\)"):
        codec().encode((), None, np.zeros((1, 2, 3, 2), np.float32))
    with pytest.raises(ValueError, match=r"of images that 8 divides, not of \(4, 4, 1\)"):
        codec(factor=8)
    with pytest.raises(ValueError, match="mean must be 1 numbers, one a channel, not 2"):
        codec(mean=(0.0, 0.0))
    with pytest.raises(ValueError, match="deviation must be above 0"):
        codec(deviation=(0.0,))
