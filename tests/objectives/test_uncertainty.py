"""EDM2's loss: its formula, and that its function of the noise level learns the errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import image_batch, problem

from diffusion_jax.core import predictions, schedules, timesteps, weightings
from diffusion_jax.core.noise import example_keys
from diffusion_jax.objectives import Context, denoising, uncertainty
from diffusion_jax.objectives.uncertainty import log_variance
from diffusion_jax.training.state import init_state, warmed_up_ema
from diffusion_jax.training.step import make_train_step

EDM = schedules.edm()
PROBLEM = problem(
    schedule=EDM,
    parameterization=predictions.edm(),
    weighting=weightings.edm(),
    distribution=timesteps.lognormal(EDM),
)


def apply_fn(params, x, t, cond, dropout_key=None):
    return params["w"] * x


def test_the_loss_is_the_error_over_what_is_expected_of_it_plus_the_logarithm_of_that():
    batch, t = image_batch(6), jnp.geomspace(0.01, 50.0, 6)
    context = Context(apply_fn, None, 0, example_keys(jax.random.key(0), np.arange(6)), t, 1.0)
    aux = {"u": jnp.asarray(np.random.default_rng(0).standard_normal(128), jnp.float32)}
    found, report = uncertainty(PROBLEM).loss({"w": 0.5}, aux, context, batch)
    error, _ = denoising(PROBLEM).loss({"w": 0.5}, {}, context, batch)
    u = np.asarray(log_variance(aux["u"], -2 * np.log(t)), np.float64)
    assert np.abs(u).max() > 0.3
    np.testing.assert_allclose(report["error"], error, rtol=1e-5)
    np.testing.assert_allclose(found, error / np.exp(u) + u, rtol=1e-4)


def test_the_function_learns_the_logarithm_of_the_errors():
    """Of errors whose mean at a noise level is known: error / e^u + u is least at u = log mean."""
    objective = uncertainty(PROBLEM)
    expected = lambda logsnr: jnp.sin(logsnr / 4) - logsnr / 8

    def step(aux, number):
        one, other = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
        logsnr = 2.4 + 2.4 * jax.random.normal(one, (64,))
        noise = jax.random.uniform(other, (64,), minval=0.5, maxval=1.5)
        error = jnp.exp(expected(logsnr)) * noise
        state = init_state({}, optax.sgd(0.1)).replace(step=number)
        report = {"logsnr": logsnr, "error": error, "weights": jnp.ones(64)}
        return objective.update(aux, state, report | {"t": logsnr, "losses": error}), None

    aux, _ = jax.lax.scan(step, objective.init(None, {}), jnp.arange(1, 2001))
    at = np.linspace(-2.0, 7.0, 20, dtype=np.float32)
    np.testing.assert_allclose(log_variance(aux["u"], at), expected(at), atol=0.15)


def test_a_step_trains_both_and_reports_the_error():
    objective, optimizer = uncertainty(PROBLEM, features=16), optax.sgd(0.01)
    step = make_train_step(objective, apply_fn, optimizer, warmed_up_ema(0.9))
    params = {"w": jnp.float32(0.1)}
    state = init_state(params, optimizer, aux=objective.init(None, params))
    state, metrics = jax.jit(step)(state, jax.random.key(0), image_batch(8))
    # at first u = 0, and the loss is the error
    assert float(metrics["loss"]) == pytest.approx(float(metrics["error"]), rel=1e-5)
    assert float(metrics["u"]) == 0.0 and float(state.params["w"]) != pytest.approx(0.1)
    np.testing.assert_allclose(np.abs(state.aux["u"]), 0.01, rtol=1e-3)  # Adam's first step


@pytest.mark.parametrize("changes", [{"features": 0}, {"learning_rate": -1.0}])
def test_settings_out_of_range(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be above 0"):
        uncertainty(PROBLEM, **changes)
