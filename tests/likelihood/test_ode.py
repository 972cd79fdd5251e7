"""The likelihood by the probability-flow ODE against densities in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import KEY

from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.core.types import CLEAN, Prediction
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.likelihood import ode

MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))
X0 = np.array([[-0.9, 0.4], [-0.5, 0.6], [0.6, -0.2], [0.8, 0.3], [0.0, 0.0], [1.2, -1.0]])


# As near to the data as each schedule can go: their own density is meant, within 1e-2 nats.
NEAR = {
    "vp": {"t_min": 1e-5},
    "sub_vp": {"t_min": 1e-4},
    "ve": {"sigma_min": 0.002},
    "edm": {},
    "rectified_flow": {},
    "linear_logsnr": {},
    "cosine_logsnr": {},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_mixtures_likelihood_is_its_density(name):
    schedule = SCHEDULES[name](**NEAR.get(name, {}))
    clean = schedule.level(schedule.t_min)
    found = jax.jit(lambda x: ode.log_likelihood(MIXTURE.denoiser, x, schedule))(X0)
    # that of the data with the cleanest level's noise, in the data's units
    noised = MIXTURE._replace(stds=np.hypot(MIXTURE.stds, float(clean.sigma / clean.alpha)))
    np.testing.assert_allclose(found, noised.log_prob(X0, CLEAN), atol=1e-2)
    if name in NEAR:
        np.testing.assert_allclose(found, MIXTURE.log_prob(X0, CLEAN), atol=1e-2)


def test_the_density_from_a_noisy_level_on_is_that_of_noisy_data():
    schedule = SCHEDULES["vp"]()
    level = schedule.level(0.4)  # alpha 0.44
    noised = MIXTURE._replace(stds=np.hypot(MIXTURE.stds, float(level.sigma / level.alpha)))
    found = jax.jit(lambda x: ode.log_likelihood(MIXTURE.denoiser, x, schedule, t_min=0.4))(X0)
    np.testing.assert_allclose(found, noised.log_prob(X0, CLEAN), atol=5e-3)


def test_a_network_that_knows_its_level_by_t_alone_has_the_same_likelihood():
    schedule = SCHEDULES["linear"]()
    network = lambda params, x, t, cond: MIXTURE.denoiser(x, schedule.level(t)).x0
    by_t = make_denoiser(network, None, PREDICTIONS["x0"]())
    found, expected = (
        jax.jit(lambda x, d=d: ode.log_likelihood(d, x, schedule))(X0)
        for d in (by_t, MIXTURE.denoiser)
    )
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_hutchinsons_estimate_has_the_exact_one_as_its_mean():
    schedule = SCHEDULES["vp"](t_min=1e-5)
    estimate = lambda x, keys: ode.log_likelihood(MIXTURE.denoiser, x, schedule, keys, 2)
    x0 = np.repeat(X0[1:2], 2000, axis=0)
    found = np.asarray(jax.jit(estimate)(x0, example_keys(KEY, np.arange(2000))))
    error = found.std() / np.sqrt(len(found))
    assert 1e-4 < error < 0.03  # it is random
    np.testing.assert_allclose(
        found.mean(), MIXTURE.log_prob(X0[1:2], CLEAN)[0], atol=4 * error + 5e-3
    )


@pytest.mark.parametrize("probes", [None, 1])
def test_the_divergence_is_the_trace_of_the_jacobian(x64, probes):
    matrix = np.random.default_rng(0).normal(size=(6, 6))
    linear = lambda z: jnp.einsum("ij,bj->bi", matrix, z.reshape(3, 6)).reshape(z.shape)
    z = np.random.default_rng(1).normal(size=(3, 2, 3))
    if probes is None:
        directions, expected = None, np.full(3, np.trace(matrix))
    else:
        directions = np.random.default_rng(2).normal(size=(5, 3, 2, 3))
        flat = directions.reshape(5, 3, 6)
        expected = np.einsum("kbi,ij,kbj->b", flat, matrix, flat) / 5
    value, divergence = ode.divergence(linear, jnp.asarray(z), directions)
    np.testing.assert_allclose(value, linear(z), rtol=1e-12)
    np.testing.assert_allclose(divergence, expected, rtol=1e-9)


def test_bits_per_dim_of_a_known_density_of_8_bit_values():
    # data uniform over the 256 bins: density 1 / 2 (x 255 / 256) a dimension, 8 bits each
    size = 12
    nats = np.array([-size * np.log(256 * 2 / 255)])
    np.testing.assert_allclose(ode.bits_per_dim(nats, size), [8.0], rtol=1e-6)


def test_dequantization_stays_within_the_bins():
    x0 = np.broadcast_to(np.array([-1.0, 3 / 255, 1.0]), (500, 3))
    noisy = np.asarray(ode.dequantized(example_keys(KEY, np.arange(500)), x0))
    offset = (noisy - x0) * 255
    assert np.abs(offset).max() <= 1.001
    np.testing.assert_allclose(offset.std(), np.sqrt(1 / 3), rtol=0.06)
    assert len(np.unique(offset)) > 1000


def test_a_flow_that_cannot_be_solved_is_nan():
    rough = lambda x, level: Prediction(jnp.sin(1e5 * x), jnp.sin(1e5 * x))
    schedule = SCHEDULES["vp"]()
    flow = ode.flow(rough, schedule.level(1.0), schedule.level(0.001))
    assert np.all(np.isnan(jax.jit(lambda z: ode.solve(flow, z, 1e-7, 1e-7))(jnp.ones((1, 2)))))
