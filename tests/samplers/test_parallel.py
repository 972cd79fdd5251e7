"""Picard iterations: the serial chain, in fewer calls one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import grids, schedules
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.samplers import ddim, picard, sample

MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))
SCHEDULES = {
    "cosine": schedules.cosine(1000),  # begins in pure noise: sigma / alpha = 20,291
    "edm": schedules.edm(),
}


def chains(schedule, num_steps, window, tolerance):
    grid = grids.logsnr(schedule, num_steps)
    x = np.random.default_rng(0).standard_normal((16, 2)) * float(grid.sigma[0])
    found = jax.jit(lambda x: picard(MIXTURE.denoiser, x, grid, window, tolerance))(x)
    serial = jax.jit(lambda x: sample(ddim(), MIXTURE.denoiser, None, x, grid))(x)
    return np.asarray(found.x0), np.asarray(serial), int(found.iterations)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("window", [1, 7, 40])
def test_without_a_tolerance_it_is_the_serial_chain(x64, name, window):
    found, serial, iterations = chains(SCHEDULES[name], 24, window, 0.0)
    np.testing.assert_allclose(found, serial, atol=1e-9)
    assert iterations <= 24
    assert window > 1 or iterations == 24


@pytest.mark.parametrize("tolerance", [0.03, 0.003])
def test_with_a_tolerance_it_is_near_it_in_fewer_calls(x64, tolerance):
    found, serial, iterations = chains(SCHEDULES["cosine"], 100, 100, tolerance)
    assert np.sqrt(np.mean((found - serial) ** 2)) < 2 * tolerance
    assert iterations < 60


def test_calls_are_counted_and_as_wide_as_the_window():
    grid, seen = grids.logsnr(SCHEDULES["edm"], 12), []

    def spread(x):
        jax.debug.callback(lambda x: seen.append(x.shape), x)
        return x

    found = picard(MIXTURE.denoiser, jnp.ones((3, 2)), grid, 4, 0.01, spread)
    jax.effects_barrier()
    assert len(seen) == int(found.iterations) - 1  # the last hop is one level alone
    assert set(seen) == {(4, 3, 2)}


def test_one_level_is_one_call():
    grid = grids.trailing(SCHEDULES["edm"], 1)
    found = picard(MIXTURE.denoiser, jnp.ones((3, 2)), grid, 4)
    t = jax.tree.map(lambda a: a[0], grid)
    np.testing.assert_allclose(found.x0, MIXTURE.denoiser(jnp.ones((3, 2)), t).x0)
    assert int(found.iterations) == 1


@pytest.mark.parametrize(
    ("window", "tolerance", "words"), [(0, 0.1, "window"), (2, -1.0, "tolerance")]
)
def test_settings_out_of_range_are_refused(window, tolerance, words):
    with pytest.raises(ValueError, match=words):
        picard(MIXTURE.denoiser, jnp.ones((3, 2)), grids.logsnr(SCHEDULES["edm"], 4), window,
               tolerance)  # fmt: skip
