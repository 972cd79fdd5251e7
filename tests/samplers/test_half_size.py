"""Chains that begin at half size, against Gaussian fields whose denoiser is known at both sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import schedules
from diffusion_jax.core.grids import logsnr
from diffusion_jax.core.noise import example_keys, initial_noise
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.samplers import ancestral, dpmpp_2m, sample_from_half
from diffusion_jax.samplers.half_size import doubled, enlarged, halved, matched

COARSE, DETAIL, MEAN = 0.6, 0.2, 0.1  # deviations of the means of 2 x 2 pixels and of the rest
SIZE, COUNT = (8, 8, 1), 1000


def field(x, level):
    """The exact denoiser of MEAN + U a + (1 - U D) b, a and b white of these deviations, at full
    size, and at half size that of MEAN + a."""
    level = level.expand(x.ndim)
    alpha, sigma = level.alpha, level.sigma

    def part(x, deviation, noise):
        return alpha * deviation**2 / (alpha**2 * deviation**2 + noise**2) * x

    away = x - alpha * MEAN
    if x.shape[1:] == SIZE:
        means = doubled(halved(away))
        x0 = MEAN + part(means, COARSE, sigma / 2) + part(away - means, DETAIL, sigma)
    else:
        x0 = MEAN + part(away, COARSE, sigma)
    return Prediction(x0, (x - alpha * x0) / sigma)


def drawn(sampler, schedule, until, steps):
    grid = logsnr(schedule, steps)
    half = matched(schedule, grid, until)

    @jax.jit
    def run(index):
        keys = example_keys(jax.random.key(0), index)
        first = Level(*(a[0] for a in half))
        y = initial_noise(example_keys(jax.random.key(1), index), (4, 4, 1), first)
        return sample_from_half(sampler, field, keys, y, half, grid)

    whole = Level(*(a[len(half.t) - 1] for a in grid))
    return np.asarray(run(np.arange(COUNT)), np.float64), float(whole.sigma / whole.alpha)


def parts(x):
    """(deviation of the means, of the rest in a direction of its own): (1 - U D) has three
    dimensions of four."""
    means = x.reshape(len(x), 4, 2, 4, 2, 1).mean((2, 4))
    rest = x - means.repeat(2, 1).repeat(2, 2)
    return means.std(), np.sqrt(np.mean(rest**2) * 4 / 3), means.mean()


@pytest.mark.parametrize(
    ("name", "until"), [("cosine", -2.0), ("cosine", 4.0), ("rectified_flow", 1.5)]
)
def test_the_flow_keeps_the_means_and_makes_the_detail_that_it_can(name, until):
    """The means have their law; the detail, which begins as the noise alone, of deviation r in
    x / alpha, is brought by the linear flow to d r / sqrt(r^2 + d^2)."""
    x, ratio = drawn(dpmpp_2m(), schedules.SCHEDULES[name](), until, 60)
    coarse, detail, mean = parts(x)
    assert mean == pytest.approx(MEAN, abs=0.02)
    assert coarse == pytest.approx(COARSE, rel=0.02)
    expected = DETAIL * ratio / np.hypot(ratio, DETAIL)
    assert detail == pytest.approx(expected, rel=0.02)
    assert (expected < 0.6 * DETAIL) == (until == 4.0)  # which is not hidden any more


def test_a_chain_with_noise_has_the_laws_moments():
    x, _ = drawn(ancestral("fixed_large"), schedules.cosine(), -1.0, 200)
    coarse, detail, mean = parts(x)
    assert mean == pytest.approx(MEAN, abs=0.02)
    assert coarse == pytest.approx(COARSE, rel=0.03)
    assert detail == pytest.approx(DETAIL, rel=0.05)


def test_levels_are_matched_by_half_the_noise(x64):
    schedule = schedules.cosine_logsnr()
    grid = logsnr(schedule, 40)
    half = matched(schedule, grid, -3.0)
    count = len(half.t)
    assert grid.logsnr[count - 2] < -3.0 <= grid.logsnr[count - 1]
    ratio = np.asarray(grid.sigma / grid.alpha)[:count]
    np.testing.assert_allclose(half.sigma / half.alpha, 0.5 * ratio, rtol=1e-10)
    with pytest.raises(ValueError, match="at a log-SNR of at most 13.6 of this schedule, not 14.5"):
        matched(schedule, grid, 14.5)


def test_what_is_doubled_keeps_its_means_and_has_white_noise():
    half, whole = Level(0.0, jnp.float32(0.8), jnp.float32(0.6)), Level(0.0, 0.0, 0.0)
    ratio = 2 * 0.6 / 0.8
    whole = Level(0.0, jnp.float32(1 / np.hypot(1, ratio)), jnp.float32(ratio / np.hypot(1, ratio)))
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(2, 2, 1))
    y = 0.8 * x0 + 0.6 * rng.normal(size=(20_000, 2, 2, 1))
    keys = example_keys(jax.random.key(0), np.arange(len(y)))
    x = np.asarray(enlarged(keys, y.astype(np.float32), half, whole), np.float64)
    means = x.reshape(-1, 2, 2, 2, 2, 1).mean((2, 4))
    np.testing.assert_allclose(means, float(whole.alpha) / 0.8 * y, atol=1e-5)
    noise = (x - float(whole.alpha) * x0.repeat(2, 0).repeat(2, 1)).reshape(len(y), 16)
    covariance = noise.T @ noise / len(y) / float(whole.sigma) ** 2
    np.testing.assert_allclose(covariance, np.eye(16), atol=0.04)
