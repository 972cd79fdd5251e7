"""Quantisation against loops in NumPy's float64 and against counting."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import quantization
from diffusion_jax.core.latents import kl_to_standard, normal_of

DECAY = 0.9


def test_the_nearest_code_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    z, codebook = rng.standard_normal((3, 4, 2)), rng.standard_normal((7, 2))
    expected = np.square(z[..., None, :] - codebook).sum(-1).argmin(-1)
    found = quantization.nearest(jnp.float32(z), jnp.float32(codebook))
    np.testing.assert_array_equal(found, expected)


def test_the_code_itself_goes_on_and_its_gradient_is_that_of_the_vector():
    z, q = jnp.float32([0.1, -3.3e7, 0.7]), jnp.float32([0.3, -1.0, 1.1])
    loss = lambda z, q: jnp.sum(jnp.array([2.0, 5.0, -3.0]) * quantization.straight_through(z, q))
    np.testing.assert_array_equal(quantization.straight_through(z, q), q)  # not z + (q - z)
    of_z, of_q = jax.grad(loss, (0, 1))(z, q)
    np.testing.assert_array_equal(of_z, [2.0, 5.0, -3.0])
    np.testing.assert_array_equal(of_q, [0.0, 0.0, 0.0])


def test_a_codebook_of_averages_is_that_of_a_loop():
    """Sizes from 1; after every batch n = 0.9 n + 0.1 count, m = 0.9 m + 0.1 sum, code = m / n."""
    rng = np.random.default_rng(1)
    codebook = rng.standard_normal((4, 3))
    sizes, sums = np.ones(4), codebook.copy()
    counts = quantization.first_counts(jnp.float32(codebook))
    for _ in range(5):
        z, index = rng.standard_normal((10, 3)), rng.integers(0, 3, 10)  # code 3 has none
        counts = quantization.counted(counts, jnp.float32(z), jnp.asarray(index), DECAY)
        for k in range(4):
            mine = [vector for vector, i in zip(z, index, strict=True) if i == k]
            sizes[k] = DECAY * sizes[k] + 0.1 * len(mine)
            sums[k] = DECAY * sums[k] + 0.1 * sum(mine, np.zeros(3))
    np.testing.assert_allclose(counts.sizes, sizes, rtol=1e-6)
    found = np.asarray(quantization.codebook_of(counts))
    np.testing.assert_allclose(found, sums / sizes[:, None], rtol=1e-4)
    np.testing.assert_allclose(found[3], codebook[3], rtol=1e-4)  # an unused code stays


def test_dead_codes_become_vectors_of_the_batch_and_others_stay():
    counts = quantization.Counts(jnp.float32([0.05, 2.0, 0.0, 0.1]), jnp.ones((4, 2)))
    z = jnp.arange(20.0).reshape(10, 2) + 100.0
    found, dead = quantization.revived(counts, z, jax.random.key(0), 0.1)
    np.testing.assert_array_equal(dead, [True, False, True, False])
    np.testing.assert_allclose(found.sizes, [1.0, 2.0, 1.0, 0.1])
    rows = {tuple(row) for row in np.asarray(z)}
    assert all(tuple(np.asarray(found.sums[k])) in rows for k in (0, 2))
    np.testing.assert_array_equal(found.sums[1::2], np.ones((2, 2)))
    assert not quantization.revived(counts, z, jax.random.key(0), 0.0)[1].any()


def test_perplexity_and_usage_of_known_shares():
    np.testing.assert_allclose(quantization.perplexity(jnp.ones(8)), 8.0, rtol=1e-6)
    np.testing.assert_allclose(quantization.perplexity(jnp.float32([3, 0, 0])), 1.0, rtol=1e-6)
    shares = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-np.sum(shares * np.log(shares)))
    np.testing.assert_allclose(quantization.perplexity(jnp.float32([4, 2, 2])), expected, rtol=1e-6)
    # one vector at a decay of 0.9 is a size of 0.1 at first and of 0.1 x 0.9^10 after ten steps
    sizes = jnp.float32([0.1, 0.1 * 0.9**9, 0.1 * 0.9**11, 0.0])
    assert float(quantization.usage(sizes, DECAY)) == 0.5


@pytest.mark.parametrize("levels", [(2,), (3, 4), (8, 5, 2)])
def test_scalar_quantisation_has_as_many_codes_as_its_levels_say(levels):
    far = np.linspace(-4, 4, 41, dtype=np.float32)
    z = np.array(list(itertools.product(far, repeat=len(levels))), np.float32)
    found = np.asarray(quantization.fsq(z, levels))
    for channel, level in enumerate(levels):
        values, half = np.unique(found[:, channel]), level // 2
        np.testing.assert_allclose(values, np.arange(-half, level - half) / half, atol=1e-6)
    index, count = np.asarray(quantization.fsq_index(z, levels)), int(np.prod(levels))
    assert set(index.tolist()) == set(range(count))
    assert len(set(zip(index.tolist(), map(tuple, found.tolist()), strict=True))) == count
    assert not quantization.fsq(np.zeros(len(levels), np.float32), levels).any()


def test_the_gradient_of_scalar_quantisation_is_that_of_the_bound():
    """d/dz (tanh(z + shift) h - offset) / (L // 2) = h (1 - tanh^2) / (L // 2), by hand."""
    levels, z = (5, 8), np.array([0.3, -0.7])
    grad = jax.grad(lambda z: jnp.sum(quantization.fsq(z, levels)))(jnp.float32(z))
    half = np.array([4.0, 7.0]) * 1.001 / 2
    shift = np.arctanh(np.array([0.0, 0.5]) / half)
    np.testing.assert_allclose(grad, half / [2, 4] / np.cosh(z + shift) ** 2, rtol=1e-5)


def test_the_divergence_from_the_standard_normal_is_its_integral():
    rng = np.random.default_rng(2)
    mean, log_variance = rng.standard_normal(4), rng.standard_normal(4)
    x = np.linspace(-40, 40, 400_001)[:, None]
    log_p = -0.5 * ((x - mean) ** 2 / np.exp(log_variance) + log_variance)
    expected = np.sum(np.exp(log_p) * (log_p + 0.5 * x**2), 0) * (x[1] - x[0]) / np.sqrt(2 * np.pi)
    found = kl_to_standard(jnp.float32(mean), jnp.float32(log_variance))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    mean, log_variance = normal_of(jnp.float32([1.0, 2.0, -50.0, 50.0]))
    np.testing.assert_array_equal(mean, [1.0, 2.0])
    np.testing.assert_array_equal(log_variance, [-30.0, 20.0])
