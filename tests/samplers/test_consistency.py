"""Samplers of consistency models, with the consistency function of Gaussian data and by the papers'
formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from chains import moments, wavy

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.samplers import consistency, ddim, sample, tcd

MEAN, STD = 0.3, 0.5
TABLE = schedules.cosine(1000)


def exact(mean, std):
    """The consistency function of N(mean, std^2) data."""

    def denoiser(x, level):
        alpha, sigma = level.expand(x.ndim)[1:]
        x0 = mean + std * (x - alpha * mean) / jnp.hypot(alpha * std, sigma)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoiser


@pytest.mark.parametrize("t", ["999,600", "990,700,300,50"])
def test_with_the_exact_function_any_number_of_steps_draws_the_data(monkeypatch, injected, x64, t):
    """Of t given by hand, mean and deviation are exact at every number of steps."""
    grid = grids.explicit(TABLE, t)
    monkeypatch.setattr("chains.gaussian", exact)
    means, stds = moments(injected, consistency(), grid, MEAN, STD)
    alpha, sigma = (np.asarray(a, np.float64) for a in (grid.alpha, grid.sigma))
    np.testing.assert_allclose(means, [*alpha * MEAN, MEAN], rtol=1e-6)
    np.testing.assert_allclose(stds, [*np.hypot(alpha * STD, sigma), STD], rtol=1e-6)


def test_two_steps_are_the_papers_written_out(injected, x64):
    """Song et al. 2023, algorithm 1 at alpha = 1, whose epsilon is 0: x + tau z, and f again."""
    edm = schedules.edm()
    grid = grids.explicit(edm, "80,0.821")
    x, z = np.random.default_rng(0).normal(size=(2, 3, 4))
    found = sample(injected(consistency(), z[None]), wavy, None, 80.0 * x, grid)
    f = lambda x, u: np.tanh(x + np.cos(0.1 * u))
    np.testing.assert_allclose(found, f(f(80.0 * x, 80.0) + 0.821 * z, 0.821), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.2, 0.9])
def test_tcd_goes_to_its_paper_s_and_adds_noise_from_there(injected, x64, gamma):
    """Zheng et al. 2024: along the path to s' = (1 - gamma) s, by a table's cumulative products,
    and from s' to s by the forward process."""
    t, s = TABLE.level(np.array(800)), TABLE.level(np.array(500))
    bar = np.cumprod(1 - schedules.cosine_betas(1000))
    x, z = np.random.default_rng(0).normal(size=(2, 3, 4))
    step = injected(tcd(gamma, TABLE), z[None]).step
    found = step(np.arange(3), wavy, x, (0, ()), t, s)[0]
    x0 = np.tanh(x + np.cos(80.0))
    eps = (x - np.sqrt(bar[800]) * x0) / np.sqrt(1 - bar[800])
    cleaner = bar[round((1 - gamma) * 500)]
    there = np.sqrt(cleaner) * x0 + np.sqrt(1 - cleaner) * eps
    expected = np.sqrt(bar[500] / cleaner) * there + np.sqrt(1 - bar[500] / cleaner) * z
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_tcd_is_ddim_at_0_and_consistency_sampling_at_1(injected, x64):
    t, s = Level(0.6, 0.6, 0.8), Level(0.3, 0.8, 0.6)
    x, z = np.random.default_rng(0).normal(size=(2, 3, 4))
    one = lambda sampler: injected(sampler, z[None]).step(None, wavy, x, (0, ()), t, s)[0]
    np.testing.assert_allclose(one(tcd(0.0)), one(ddim()), rtol=1e-12)
    np.testing.assert_allclose(one(tcd(1.0)), one(consistency()), rtol=1e-12)
    for schedule in (schedules.edm(), schedules.rectified_flow(), TABLE):
        last = schedule.level(schedule.t_min)
        step = injected(tcd(0.5, schedule), z[None]).step
        assert np.all(np.isfinite(step(None, wavy, x, (0, ()), t, last)[0]))


def test_gamma_lies_between_0_and_1():
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], not 1.5"):
        tcd(1.5)
