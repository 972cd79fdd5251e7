"""Editing: the laws of its functions, with exact denoisers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import samplers
from diffusion_jax.commands.edit import INVERTIBLE
from diffusion_jax.core import grids, schedules
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.noise import example_keys, initial_noise
from diffusion_jax.core.types import Level
from diffusion_jax.denoisers import with_eps
from diffusion_jax.samplers import editing

KEY = jax.random.key(0)
SCHEDULE = schedules.cosine(1000)
TWO = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))
X0 = np.random.default_rng(0).normal(TWO.means[[0, 0, 0, 1, 1, 1, 1, 1]], 0.2)  # eight of its data


def gaussian(mean, std):
    return Mixture(np.ones(1), np.array([[mean, -mean]]), np.array([std]))


def deviation(level, std):
    return np.sqrt(level.alpha**2 * std**2 + level.sigma**2)


def at(grid, i):
    return Level(*(float(a[i]) for a in grid))


# image_to_image


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_image_to_image_has_the_law_of_a_noised_image_that_flows_back(strength):
    mean, std, count, value = np.array([0.5, -0.5]), 0.4, 4000, 1.5
    grid = grids.logsnr(SCHEDULE, 40)
    keys = example_keys(KEY, np.arange(count))
    run = jax.jit(
        lambda keys: editing.image_to_image(
            samplers.heun(),
            gaussian(0.5, std).denoiser,
            keys,
            jnp.full((count, 2), value),
            grid,
            strength,
        )
    )
    found = np.asarray(run(keys))
    level = at(grid, 40 - round(40 * strength))
    ratio = std / deviation(level, std)  # the flow keeps x's place among the marginal's deviations
    expected = mean + ratio * level.alpha * (value - mean)
    spread = ratio * level.sigma
    np.testing.assert_allclose(found.mean(0), expected, atol=5 * spread / np.sqrt(count))
    np.testing.assert_allclose(
        found.std(0), spread, rtol=5 / np.sqrt(2 * count) + 5e-3
    )  # besides, 40 steps' error


def test_image_to_image_forgets_at_strength_1_and_keeps_near_0():
    grid, keys = grids.logsnr(SCHEDULE, 20), example_keys(KEY, np.arange(8))

    @functools.partial(jax.jit, static_argnums=1)
    def varied(x0, strength):
        return editing.image_to_image(samplers.ancestral(), TWO.denoiser, keys, x0, grid, strength)

    np.testing.assert_allclose(varied(X0, 1.0), varied(-X0, 1.0), atol=1e-2)
    np.testing.assert_allclose(varied(X0, 0.01), X0, atol=0.03)
    assert np.abs(varied(X0, 1.0) - X0).max() > 0.3


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, np.nan])
def test_a_strength_is_above_0_and_at_most_1(strength):
    with pytest.raises(ValueError, match="strength"):
        editing.noised(KEY[None], np.zeros((1, 2)), grids.uniform(SCHEDULE, 5), strength)


# reconstruct, translate


@pytest.mark.parametrize(("sampler", "order"), [(samplers.ddim(), 1), (samplers.heun(), 2)])
def test_a_reconstructions_error_falls_at_the_samplers_order(x64, sampler, order):
    errors = []
    for num_steps in (80, 160):
        grid = grids.logsnr(SCHEDULE, num_steps + 1)
        _, found = jax.jit(
            lambda x0, grid=grid: editing.reconstruct(TWO.denoiser, x0, grid, sampler)
        )(X0)
        errors.append(np.sqrt(np.mean((found - X0) ** 2)))
    assert errors[1] < (0.1, 2e-3)[order - 1]
    assert np.log2(errors[0] / errors[1]) > order - 0.3


def test_a_latent_is_the_image_at_the_cleanest_level_carried_up_by_the_flow(x64):
    """On a grid whose cleanest level is noisy, so that it shows where the image stands."""
    whole, std = grids.logsnr(SCHEDULE, 200), 0.4
    grid = grids.truncated(whole, stop=400)
    x0 = np.array([[0.3, -0.7], [0.9, 0.1]])
    run = jax.jit(
        lambda x0: editing.reconstruct(gaussian(0.5, std).denoiser, x0, grid, samplers.heun_flow())
    )
    latent, found = run(x0)
    low, high, mean = at(grid, -1), at(grid, 0), np.array([0.5, -0.5])
    assert low.alpha < 0.9
    expected = high.alpha * mean + deviation(high, std) / deviation(low, std) * low.alpha * (
        x0 - mean
    )
    np.testing.assert_allclose(latent, expected, atol=1e-3)
    np.testing.assert_allclose(found, x0, atol=1e-3)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_command_allows_samplers_that_can_be_inverted(name):
    x0, grid = np.array([[0.3, -0.7], [0.9, 0.1]]), grids.logsnr(SCHEDULE, 101)
    sampler = samplers.SAMPLERS[name]()
    _, found = jax.jit(
        lambda x0: editing.reconstruct(gaussian(0.5, 0.4).denoiser, x0, grid, sampler)
    )(x0)
    np.testing.assert_allclose(found, x0, atol=0.1 if name in ("ddim", "euler") else 2e-3)


def test_translation_maps_quantiles_to_quantiles_and_back():
    x0 = np.array([[0.3, -0.7], [0.9, 0.1], [0.5, -0.5]])
    source, target = gaussian(0.5, 0.4).denoiser, gaussian(-1.0, 0.1).denoiser
    grid, sampler = grids.logsnr(SCHEDULE, 200), samplers.heun_flow()
    found = jax.jit(lambda x0: editing.translate(source, target, x0, grid, sampler))(x0)
    mean, new_mean = np.array([0.5, -0.5]), np.array([-1.0, 1.0])
    np.testing.assert_allclose(found, new_mean + 0.1 / 0.4 * (x0 - mean), atol=3e-3)
    back = jax.jit(lambda x: editing.translate(target, source, x, grid, sampler))(found)
    np.testing.assert_allclose(back, x0, atol=5e-3)


# interpolate


def test_interpolation_turns_evenly_from_end_to_end():
    a, b = np.zeros((2, 2, 1), np.float32), np.zeros((2, 2, 1), np.float32)
    a[0, 0], b[1, 0] = 3.0, 3.0
    fractions = np.array([0.0, 0.25, 0.5, 1.0])
    found = np.asarray(editing.interpolate(a, b, fractions))
    assert found.shape == (4, 2, 2, 1)
    np.testing.assert_allclose(found[[0, -1]], [a, b], atol=1e-6)
    np.testing.assert_allclose(np.sqrt((found**2).sum((1, 2, 3))), 3.0, rtol=1e-6)
    angle = np.arccos(np.clip(np.einsum("fijk,ijk->f", found, a) / 9, -1, 1))
    np.testing.assert_allclose(angle, np.pi / 2 * fractions, atol=1e-3)
    unequal = np.asarray(editing.interpolate(a, 2 * b + a, np.array([0.0, 1.0])))
    np.testing.assert_allclose(unequal, [a, 2 * b + a], atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1.0 + 1e-6, -1.0, 0.0])
def test_interpolation_is_finite_where_latents_are_parallel(factor):
    a = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    b = np.float32(factor) * a
    found = np.asarray(editing.interpolate(a, b, np.linspace(0, 1, 5)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[0, -1]], [a, b], atol=1e-5)
    if factor > 0:
        np.testing.assert_allclose(found[2], (a + b) / 2, rtol=1e-5)


# repaint

COVARIANCE, MEAN = np.array([[1.0, 0.8], [0.8, 1.0]]), np.array([0.5, -0.5])


def correlated(x, level):
    """The exact denoiser of N(MEAN, COVARIANCE)."""
    gain = (
        level.alpha
        * COVARIANCE
        @ jnp.linalg.inv(level.alpha**2 * COVARIANCE + level.sigma**2 * jnp.eye(2))
    )
    return with_eps(MEAN + (x - level.alpha * MEAN) @ gain.T, x, level)


def paint(sampler, grid, count, resamples):
    keys = example_keys(KEY, np.arange(count))
    x_init = initial_noise(example_keys(jax.random.key(1), np.arange(count)), (2,), at(grid, 0))
    x0, mask = jnp.full((count, 2), 1.0), np.array([1, 0])
    run = lambda keys, x_init: editing.inpaint(
        sampler, correlated, keys, x_init, x0, mask, grid, resamples
    )
    return np.asarray(jax.jit(run)(keys, x_init))


def test_repainting_draws_from_the_conditional_distribution():
    count = 2000
    found = paint(samplers.ancestral("fixed_large"), grids.respaced(SCHEDULE, "25"), count, 30)
    np.testing.assert_array_equal(found[:, 0], 1.0)
    mean, variance = -0.5 + 0.8 * (1.0 - 0.5), 1 - 0.8**2
    error = np.sqrt(variance / count)
    np.testing.assert_allclose(
        found[:, 1].mean(), mean, atol=4 * error + 0.01
    )  # besides, of 25 levels and 30 times
    np.testing.assert_allclose(
        found[:, 1].var(), variance, atol=4 * np.sqrt(2 / count) * variance + 0.01
    )


def repainted_moments(grid, resamples):
    """Mean and variance of the painted number under ancestral("fixed_large"), step by step in
    float64."""
    mean, covariance = np.zeros(2), np.eye(2)
    for i in range(len(grid.t) - 1):
        t, s = at(grid, i), at(grid, i + 1)
        r = t.alpha**2 * s.sigma**2 / (t.sigma**2 * s.alpha**2)  # DDPM's posterior
        gain = (
            t.alpha * COVARIANCE @ np.linalg.inv(t.alpha**2 * COVARIANCE + t.sigma**2 * np.eye(2))
        )
        matrix = r * s.alpha / t.alpha * np.eye(2) + s.alpha * (1 - r) * gain
        shift, fresh = s.alpha * (1 - r) * (MEAN - t.alpha * gain @ MEAN), t.sigma**2 * (1 - r)
        for u in range(resamples):
            mean, covariance = (
                matrix @ mean + shift,
                matrix @ covariance @ matrix.T + fresh * np.eye(2),
            )
            mean[0], covariance = s.alpha * 1.0, np.diag([s.sigma**2, covariance[1, 1]])
            if u < resamples - 1:
                ratio = t.alpha / s.alpha
                mean, covariance = ratio * mean, ratio**2 * covariance + fresh * np.eye(2)
    last = at(grid, -1)
    gain = (
        last.alpha
        * COVARIANCE
        @ np.linalg.inv(last.alpha**2 * COVARIANCE + last.sigma**2 * np.eye(2))
    )
    return (MEAN + gain @ (mean - last.alpha * MEAN))[1], (gain @ covariance @ gain.T)[1, 1]


def test_repainting_takes_the_steps_of_algorithm_1():
    grid, count, resamples = grids.respaced(SCHEDULE, "6"), 8000, 3
    found = paint(samplers.ancestral("fixed_large"), grid, count, resamples)[:, 1]
    mean, variance = repainted_moments(grid, resamples)
    np.testing.assert_allclose(found.mean(), mean, atol=4 * np.sqrt(variance / count))
    np.testing.assert_allclose(found.var(), variance, rtol=4 * np.sqrt(2 / count))


def test_repainting_starts_a_method_with_a_memory_anew_in_every_step():
    grid = grids.respaced(SCHEDULE, "8")
    expected = paint(samplers.ddim(), grid, 5, 3)  # UniPC's first step is DDIM's
    np.testing.assert_allclose(paint(samplers.unipc(), grid, 5, 3), expected, atol=1e-3)


def test_a_step_is_taken_once_or_more():
    with pytest.raises(ValueError, match="1 time or more"):
        editing.repaint(samplers.ddim(), np.zeros((1, 2)), np.ones(2), 0)
