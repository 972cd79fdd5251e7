"""Levels chosen by the model's own trajectories: all paths tried, and the error that counts."""

import functools
import itertools

import jax
import numpy as np
import pytest

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.types import Level
from diffusion_jax.samplers import best_levels, ddim, local_errors, sample

MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))
SCHEDULE = schedules.cosine(1000)


def noise(seed, count=400):
    return np.random.default_rng(seed).standard_normal((count, 2))


def chain(grid, x):
    return np.asarray(jax.jit(lambda x: sample(ddim(), MIXTURE.denoiser, None, x, grid))(x))


@functools.cache
def fine_path():
    fine = grids.trailing(SCHEDULE, 100)
    run = lambda x: sample(ddim(), MIXTURE.denoiser, None, x, fine, trajectory=True)
    _, path = jax.jit(run)(noise(0))
    return fine, np.asarray(path.x), np.asarray(path.x0)


def test_a_step_to_the_next_level_has_no_error_and_one_of_two_levels_that_of_ddim(x64):
    fine, x, x0 = fine_path()
    cost = local_errors(x[:-1], x0, fine)
    assert cost.shape == (100, 101)
    np.testing.assert_allclose([cost[i, i + 1] for i in range(100)], 0.0, atol=1e-6)
    assert np.isinf(cost[np.tril_indices(100)]).all()
    t, s = (jax.tree.map(lambda a, i=i: np.asarray(a)[i], fine) for i in (60, 62))
    eps = (x[60] - t.alpha * x0[60]) / t.sigma
    error = s.alpha * x0[60] + s.sigma * eps - x[62]  # alpha^2 + sigma^2 is 1 here
    np.testing.assert_allclose(cost[60, 62], np.sqrt(np.mean(error**2)), rtol=1e-6)
    last = np.sqrt(np.mean((x0[60] - x0[99]) ** 2))
    np.testing.assert_allclose(cost[60, 100], last, rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_no_path_is_shorter(num_steps):
    cost = np.random.default_rng(1).uniform(size=(8, 9))
    cost[np.tril_indices(8)] = np.inf
    total = lambda path: sum(cost[i, j] for i, j in itertools.pairwise([*path, 8]))
    others = itertools.combinations(range(1, 8), num_steps - 1)
    expected = min(([0, *rest] for rest in others), key=total)
    assert best_levels(cost, num_steps).tolist() == expected


def test_chosen_levels_err_less_than_those_of_any_formula():
    fine, x, x0 = fine_path()
    cost, fresh = local_errors(x[:-1], x0, fine), noise(1)  # not those by which they were chosen
    exact = chain(grids.logsnr(SCHEDULE, 1000), fresh)
    error = lambda grid: np.sqrt(np.mean((chain(grid, fresh) - exact) ** 2))
    formulas = [grids.uniform, grids.karras, grids.logsnr]
    for num_steps, others in ((4, formulas), (8, [*formulas, grids.trailing])):
        chosen = best_levels(cost, num_steps)
        own = error(Level(*(np.asarray(a)[chosen] for a in fine)))
        assert own < 0.9 * min(error(make(SCHEDULE, num_steps)) for make in others)


def test_more_levels_than_there_are_are_refused():
    with pytest.raises(ValueError, match="5 levels chosen of 4"):
        best_levels(np.zeros((4, 5)), 5)
