"""An image told at low resolution: how it is made, how much noise it has, and that this is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import joined, label, low, low_resolution, told_in_sampling
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import Kind
from diffusion_jax.data.averaging import averaged
from diffusion_jax.data.spec import Declared

BYTES, FLOATS = Declared((8, 8, 3), 10), Declared((64, 64, 1), 0, (-1.0, 1.0))
SIZE = 400
KEYS = example_keys(jax.random.key(0), np.arange(SIZE))
IMAGES = np.random.default_rng(0).integers(0, 256, (SIZE, 8, 8, 3), dtype=np.uint8)
ZEROS = np.zeros((SIZE, 64, 64, 1), np.float32)


def means(images, factor):
    """The rounded means of squares, in float64, one by one."""
    count, height, width, channels = images.shape
    found = np.zeros((count, height // factor, width // factor, channels))
    for y in range(height // factor):
        for x in range(width // factor):
            rows, columns = (slice(factor * i, factor * (i + 1)) for i in (y, x))
            found[:, y, x] = images[:, rows, columns].astype(float).mean(axis=(1, 2))
    return np.round(found)


def level_of(told):
    """The levels [B] that the first frequency tells."""
    waves = np.asarray(told["low_level"], float)
    return np.arctan2(waves[:, low_resolution.WAVES], waves[:, 0]) / np.pi


def seen(told):
    """What the network sees of the image, [B, H, W, C]."""
    return np.asarray(told["low"])[..., :-1]


# The image


@pytest.mark.parametrize("factor", [2, 4])
def test_it_is_the_mean_of_the_examples_own_pixels_also_of_a_mirrored_one(factor):
    conditioner = low(BYTES, factor, "nearest", noise=0.0, sampling_noise=0.0)
    assert conditioner.kinds == {"low": Kind("image", 4), "low_level": Kind("vector", 16)}
    for images in (IMAGES, IMAGES[:, :, ::-1]):
        batch, told = jax.jit(conditioner.train)(KEYS, {"image": images})
        np.testing.assert_array_equal(batch["image"], images)
        wanted = means(images, factor).repeat(factor, axis=1).repeat(factor, axis=2)
        np.testing.assert_allclose(seen(told), wanted / 127.5 - 1.0, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(told["low"])[..., -1], 1)


def test_bilinear_is_between_the_centres_of_pixels():
    """At a factor of 2 a pixel is three quarters the nearest and a quarter the next one."""
    values = means(IMAGES, 2) / 127.5 - 1.0
    for axis in (1, 2):
        edge = np.pad(values, [(0, 0)] + [(1, 1) if a == axis else (0, 0) for a in (1, 2, 3)],
                      mode="edge")  # fmt: skip
        n = values.shape[axis]
        before, after = (np.take(edge, np.arange(n) + i, axis) for i in (0, 2))
        pair = [0.75 * values + 0.25 * other for other in (before, after)]
        shape = list(values.shape)
        shape[axis] *= 2
        values = np.stack(pair, axis + 1).reshape(shape)
    told = low(BYTES, noise=0.0, sampling_noise=0.0).train(KEYS, {"image": IMAGES})[1]
    np.testing.assert_allclose(seen(told), values, atol=1e-6)


# The noise


def test_noise_keeps_the_variance_and_has_the_moments_of_its_level(x64):
    """cos(pi s / 2) x + sin(pi s / 2) eps, in closed form."""
    levels = np.array([0.0, 0.3, 0.7, 1.0])
    images = np.full((4, 200, 200, 1), 0.8)
    found = np.asarray(low_resolution.noised(KEYS[:4], jnp.asarray(images), levels))
    assert found.dtype == np.float64
    mean, deviation = 0.8 * np.cos(np.pi * levels / 2), np.sin(np.pi * levels / 2)
    spread = deviation / 200  # of a mean of 40,000
    assert (abs(found.mean(axis=(1, 2, 3)) - mean) <= 5 * spread + 1e-12).all()
    measured = found.std(axis=(1, 2, 3))
    assert (abs(measured - deviation) <= 5 * spread / np.sqrt(2) + 1e-12).all()
    np.testing.assert_allclose(mean**2 / 0.8**2 + deviation**2, 1.0)


def test_the_level_told_is_the_level_added_and_drawn_evenly_by_each_examples_key():
    conditioner = low(FLOATS, 2, "nearest", noise=0.6)
    told = jax.jit(lambda keys: conditioner.train(keys, {"image": ZEROS})[1])(KEYS)
    levels = level_of(told)
    assert levels.min() >= 0 and levels.max() <= 0.6
    assert abs(levels.mean() - 0.3) < 4 * 0.6 / np.sqrt(12 * SIZE)
    assert abs(levels.var() - 0.03) < 4 * 0.03 * np.sqrt(0.8 / SIZE)
    small = seen(told)[:, ::2, ::2]  # of an image of zeros: the noise alone, 1024 numbers each
    deviation = np.sin(np.pi * levels / 2)
    assert (abs(small.std(axis=(1, 2, 3)) - deviation) < 6 * deviation / np.sqrt(2048)).all()
    moved = conditioner.train(KEYS[::-1], {"image": ZEROS})[1]
    np.testing.assert_allclose(level_of(moved)[::-1], levels, atol=1e-6)
    np.testing.assert_allclose(seen(moved)[::-1], seen(told), atol=1e-6)


def test_without_keys_there_is_no_noise():
    conditioner = low(BYTES, resize="nearest", noise=0.9, sampling_noise=0.5)
    _, told = conditioner.train(None, {"image": IMAGES})
    np.testing.assert_array_equal(level_of(told), 0)
    np.testing.assert_allclose(seen(told)[:, ::2, ::2], means(IMAGES, 2) / 127.5 - 1.0, atol=1e-6)
    again = told_in_sampling(conditioner, None, {"image": IMAGES})
    jax.tree.map(np.testing.assert_array_equal, again, dict(told))


# In sampling


def test_in_sampling_the_image_may_be_given_and_has_the_noise_asked_for():
    conditioner = joined([label(BYTES, 0.1), low(BYTES, noise=0.5, sampling_noise=0.25)])
    assert conditioner.reads == ("label", "image")
    labels = np.arange(SIZE, dtype=np.int32) % 10
    given = averaged(IMAGES, 2, rounded=True).astype(np.uint8)
    np.testing.assert_array_equal(given, means(IMAGES, 2))
    own = told_in_sampling(conditioner, KEYS, {"image": IMAGES, "label": labels})
    told = told_in_sampling(conditioner, KEYS, {"low": given, "label": labels})
    jax.tree.map(np.testing.assert_array_equal, told, own)
    np.testing.assert_array_equal(told["label"], labels)  # none is dropped
    np.testing.assert_allclose(level_of(told), 0.25, atol=1e-6)
    clean = told_in_sampling(low(BYTES, sampling_noise=0.0), KEYS, {"low": given})
    noise = seen(told) - np.cos(np.pi / 8) * seen(clean)
    assert 0.1 < noise.std() < np.sin(np.pi / 8)  # less: it is between pixels
    one = told_in_sampling(conditioner, KEYS[7:8], {"low": given[7:8], "label": labels[7:8]})
    np.testing.assert_allclose(one["low"][0], told["low"][7], atol=1e-6)


def test_of_nothing_all_is_zero_as_where_it_is_dropped():
    conditioner = low(BYTES, dropout=0.3)
    told = conditioner.train(KEYS, {"image": IMAGES})[1]
    dropped = np.asarray(told["low"])[:, 0, 0, -1] == 0
    assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.21 / SIZE)
    assert conditioner.null is not None
    nothing = conditioner.null(told)
    for name in ("low", "low_level"):
        np.testing.assert_array_equal(nothing[name], np.zeros_like(told[name]))
        np.testing.assert_array_equal(np.asarray(told[name])[dropped], 0)
        assert np.abs(np.asarray(told[name])[~dropped]).max(axis=-1).min() > 0
    shapes = jax.tree.map(jnp.shape, conditioner.example(SIZE))
    assert shapes == jax.tree.map(jnp.shape, dict(told))
    assert low(BYTES).null is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"factor": 1}, "factor must be at least 2, not 1"),
        ({"factor": 3}, "factor=3 must divide the images' sides, 8 x 8"),
        ({"noise": 1.5}, r"noise must lie in \[0, 1\], not 1.5"),
        ({"noise": 0.1, "sampling_noise": 0.2}, r"sampling_noise must lie in \[0, 0.1\], not 0.2"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        low(BYTES, **settings)


def test_means_of_squares_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="images of 8 x 8 have no means of 3 x 3 pixels"):
        averaged(IMAGES, 3, rounded=True)
