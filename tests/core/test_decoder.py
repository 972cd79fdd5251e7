"""The discretised Gaussian decoder, in float32, against the normal distribution's integrals in
float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from diffusion_jax.core.process import discretized_gaussian_log_prob

SCALES = np.float32([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3, 10, 30])
MEANS = {
    "inside": [0.0, 0.1, -0.37, 0.77, -0.9],
    "on a value": [1 / 255, -3 / 255, 99 / 255],
    "on the edge of two bins": [2 / 255, -128 / 255, 254 / 255],
    "at the ends": [-1.0, 1.0, -0.9999, 0.9999],
    "outside": [-1.003, 1.2, -1.5, 2.0, -5.0, 5.0],
}
VALUES = 2.0 * np.arange(256) / 255.0 - 1.0


def _edges(mean, log_scale):
    """The scale, and the 255 edges between bins in its units from the mean."""
    scale = np.exp(np.float64(log_scale))
    return scale, (np.arange(-254, 256, 2) / 255.0 - np.float64(mean)) / scale


def _expected(mean, log_scale):
    """log P of all 256 values, a bin's integral taken in the tail that is the smaller."""
    scale, edges = _edges(mean, log_scale)
    low, high = np.append(-np.inf, edges), np.append(edges, np.inf)
    mirrored = np.where(np.isinf(low), high > 0, low > 0)
    a, b = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    log_a, log_b = scipy.special.log_ndtr(a), scipy.special.log_ndtr(b)
    return log_b + np.log(-np.expm1(log_a - log_b))


def _densities(mean, log_scale, log_p):
    """The density at a bin's two edges, over its probability, and the two edges, [2, 256]; 0 at an
    open end."""
    scale, edges = _edges(mean, log_scale)
    log_density = np.concatenate([[-np.inf], scipy.stats.norm.logpdf(edges), [-np.inf]])
    edges = np.concatenate([[0.0], edges, [0.0]])
    with np.errstate(over="ignore"):
        ratio = np.exp(np.stack([log_density[:-1], log_density[1:]]) - log_p)
    return ratio / scale, np.stack([edges[:-1], edges[1:]]) * scale


_decoder = jax.jit(
    lambda mean, log_scale: discretized_gaussian_log_prob(jnp.float32(VALUES), mean, log_scale)
)


def _cases(place):
    for mean in np.float32(MEANS[place]):
        for log_scale in np.log(SCALES):
            yield mean, log_scale


@pytest.mark.parametrize("place", MEANS)
def test_the_probabilities_of_the_256_values_sum_to_one(place):
    for mean, log_scale in _cases(place):
        log_p = np.asarray(_decoder(mean, log_scale), float)
        np.testing.assert_allclose(
            np.exp(log_p).sum(), 1.0, rtol=0, atol=1e-6, err_msg=f"{mean} {np.exp(log_scale)}"
        )


@pytest.mark.parametrize("place", MEANS)
def test_the_log_probabilities_are_those_of_float64(place):
    compared = 0
    for mean, log_scale in _cases(place):
        found = np.asarray(_decoder(mean, log_scale), float)
        expected = _expected(mean, log_scale)
        # what rounding an edge or the mean to float32, 6e-8 each, can change
        rounding = (
            2 * 6e-8 * max(1.0, abs(mean)) * _densities(mean, log_scale, expected)[0].max(axis=0)
        )
        assert np.all(np.isfinite(found))
        near = expected > -80
        error = np.abs(found - expected) - 1e-4 * np.maximum(1.0, np.abs(expected))
        assert np.max((error - rounding)[near]) < 0, f"{mean} {np.exp(log_scale)}"
        if np.exp(log_scale) > 1e-3:  # where rounding is no excuse
            assert np.max(error[near]) < 0, f"{mean} {np.exp(log_scale)}"
        compared += near.sum()
    assert compared > 1000


def test_every_edge_belongs_to_both_its_bins():
    # half of a narrow density on either side: neighbours have to agree on where their edge is, to
    # the last bit
    edges = np.float32(np.arange(-254, 256, 2) / 255.0)
    image = (
        np.arange(256, dtype=np.uint8).astype(np.float32) / 127.5 - 1
    )  # a pipeline's values, rounded on their way
    run = jax.jit(jax.vmap(discretized_gaussian_log_prob, (None, 0, None)))
    for scale in (1e-6, 1e-5):
        log_p = np.asarray(run(image, edges, np.float32(np.log(scale))), float)
        np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [300.0, 1e3, 1e4])
def test_a_density_far_wider_than_the_values_keeps_its_digits(scale):
    # where the two log-CDFs of a bin agree in all digits but the last
    log_scale = np.float32(np.log(scale))
    found, expected = (
        np.asarray(_decoder(0.3, log_scale), float),
        _expected(np.float32(0.3), log_scale),
    )
    np.testing.assert_allclose(found, expected, atol=3e-4)


def test_far_tails_keep_their_digits():
    # a bin at 20 to 400 deviations, where a probability in float32 has long been 0
    for mean, log_scale in (
        (0.0, np.log(0.0025)),
        (0.5, np.log(0.01)),
        (-1.0, np.log(0.05)),
        (3.0, np.log(0.1)),
    ):
        expected = _expected(np.float32(mean), np.float32(log_scale))
        assert expected.min() < -700
        np.testing.assert_allclose(
            _decoder(np.float32(mean), np.float32(log_scale)), expected, rtol=1e-4, atol=1e-4
        )


def test_the_first_and_the_last_value_take_the_tails():
    # half of N(-1, 1) lies below -1, and the bin goes 1/255 further
    tail = scipy.stats.norm.logcdf(1 / 255)
    np.testing.assert_allclose(_decoder(-1.0, 0.0)[0], tail, rtol=1e-5)
    np.testing.assert_allclose(_decoder(1.0, 0.0)[255], tail, rtol=1e-5)
    np.testing.assert_allclose(_decoder(-50.0, 0.0)[0], 0.0, atol=1e-6)


def test_an_inner_value_has_its_bin_alone():
    # number 166 is 77/255, and its bin goes from 76/255 to 78/255
    probability = np.diff(scipy.stats.norm.cdf(np.array([76, 78]) / 255, 0.1, 0.2))[0]
    np.testing.assert_allclose(
        _decoder(0.1, np.float32(np.log(0.2)))[166], np.log(probability), rtol=1e-5
    )


def test_a_mirrored_world_has_mirrored_probabilities():
    for mean, log_scale in ((0.3, -3.0), (0.9, 0.5), (1.4, -5.0)):
        np.testing.assert_allclose(
            _decoder(-mean, log_scale)[::-1], _decoder(mean, log_scale), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("place", MEANS)
def test_the_gradients_are_finite_and_those_of_float64(place):
    value_and_gradient = jax.jit(
        jax.vmap(jax.grad(discretized_gaussian_log_prob, (1, 2)), (0, None, None))
    )
    for mean, log_scale in _cases(place):
        of_mean, of_log_scale = value_and_gradient(jnp.float32(VALUES), mean, log_scale)
        assert np.all(np.isfinite(of_mean)), f"{mean} {np.exp(log_scale)}"
        assert np.all(np.isfinite(of_log_scale)), f"{mean} {np.exp(log_scale)}"
        if np.exp(log_scale) < 3e-3:
            continue  # the edges' rounding reaches the gradient's digits
        log_p = _expected(mean, log_scale)
        near = log_p > -60
        # the integral over a bin loses and gains at its two edges, which move with the mean, and
        # with the scale from it
        densities, edges = _densities(mean, log_scale, log_p)
        for found, parts in ((of_mean, densities), (of_log_scale, densities * edges)):
            expected = parts[0] - parts[1]
            tolerance = 1e-3 * np.maximum(np.abs(expected), 1.0) + 2e-6 * np.abs(parts).sum(axis=0)
            assert np.all((np.abs(found - expected) < tolerance)[near]), (
                f"{mean} {np.exp(log_scale)}"
            )


def test_a_hopeless_network_has_a_finite_gradient():
    # its mean may lie anywhere; at t = 0 the gradient is what leads it back
    value_and_gradient = jax.jit(
        jax.vmap(jax.value_and_grad(discretized_gaussian_log_prob, 1), (0, None, None))
    )
    for mean in (30.0, -1e3, 1e4):
        for log_scale in np.log(SCALES):
            log_p, gradient = value_and_gradient(jnp.float32(VALUES), mean, log_scale)
            assert np.all(np.isfinite(log_p))
            assert np.all(np.isfinite(gradient))
            outer = 255 if mean > 0 else 0  # the value that has all of it
            assert np.all(np.sign(mean) * np.delete(gradient, outer) < 0)


def test_images_of_8_bits_find_their_bins():
    # as a pipeline makes them in float32, the mean on the very value and a tiny scale: each has
    # probability 1
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).astype(np.float32) / 127.5 - 1
    for scale in (1e-6, 1e-4):
        log_p = jax.jit(discretized_gaussian_log_prob)(
            image, image, np.full((1, 1, 1, 1), np.log(scale), np.float32)
        )
        assert log_p.shape == image.shape
        np.testing.assert_allclose(log_p, 0.0, atol=1e-6)


def test_shapes_broadcast():
    mean = np.zeros((3, 4, 4, 2), np.float32)
    log_scale = np.float32([-3.0, -1.0, 0.0]).reshape(3, 1, 1, 1)
    log_p = jax.jit(discretized_gaussian_log_prob)(
        np.full((3, 4, 4, 2), VALUES[130], np.float32), mean, log_scale
    )
    assert log_p.shape == (3, 4, 4, 2)
    for i in range(3):
        np.testing.assert_allclose(log_p[i], _expected(0.0, log_scale[i, 0, 0, 0])[130], rtol=1e-5)
