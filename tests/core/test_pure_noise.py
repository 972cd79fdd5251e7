"""At alpha = 0, pure noise: every prediction and weighting is finite or refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import predictions, schedules
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.types import Level
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.objectives.losses import denoising

TABLE = schedules.from_betas(np.append(np.linspace(0.1, 0.5, 9), 1.0))
LEVEL = TABLE.level(np.array([9, 4]))
X0, EPS, OUTPUT = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
UNDECODABLE = ("eps", "score", "edm")
# whose error of x0 counts where the target's error of x0 is infinite
INFINITE = {
    *itertools.product(("eps", "score"), ("x0", "v", "flow", "truncated_snr", "edm")),
}


def _parameterization(name):
    return predictions.mean(TABLE) if name == "mean" else PREDICTIONS[name]()


def test_the_level_is_pure_noise():
    assert LEVEL.alpha[0] == 0.0 and LEVEL.alpha[1] > 0.0


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("weighting", [None, *WEIGHTINGS])
def test_losses_are_finite_or_refused(name, weighting):
    chosen = None if weighting is None else WEIGHTINGS[weighting]()
    loss = denoising(_parameterization(name), weighting=chosen)
    value = lambda level, scale: loss(lambda x, t, cond: scale * OUTPUT, X0, EPS, level)
    if name == "edm" or (name, weighting) in INFINITE:
        with pytest.raises(ValueError, match="alpha = 0"):
            value(LEVEL, 1.0)
    else:
        assert np.all(np.isfinite(value(LEVEL, 1.0)))
    total = lambda scale, level: jnp.sum(value(level, scale))
    found = jax.jit(jax.value_and_grad(total))(1.0, LEVEL)  # the level is traced
    assert np.all(np.isfinite(found))
    if (name, weighting) == ("eps", "simple"):  # L_simple, also in the limit
        np.testing.assert_allclose(
            value(LEVEL, 1.0), np.mean((OUTPUT - EPS) ** 2, axis=1), rtol=1e-5
        )


@pytest.mark.parametrize("name", PREDICTIONS)
def test_decoding_is_finite_or_refused(name):
    denoiser = make_denoiser(lambda params, x, t, cond: OUTPUT, None, _parameterization(name))
    if name in UNDECODABLE:
        with pytest.raises(ValueError, match="alpha = 0"):
            denoiser(EPS, LEVEL)
    else:
        assert np.all(np.isfinite(denoiser(EPS, LEVEL).x0))
    prediction = jax.jit(lambda x, level: denoiser(x, level)[:2])(EPS, LEVEL)
    assert np.all(np.isfinite(prediction[0])) and np.all(np.isfinite(prediction[1]))


@pytest.mark.parametrize("name", UNDECODABLE)
def test_elsewhere_nothing_changes(x64, name):
    level = Level(np.array([0.5, 0.7]), np.array([1e-8, 0.6]), np.array([1.0, 0.8]))
    parameterization = _parameterization(name)
    x = level.alpha[:, None] * X0 + level.sigma[:, None] * EPS
    target = parameterization.target(X0.astype(float), EPS.astype(float), level)
    np.testing.assert_allclose(parameterization.x0(target, x, level), X0, rtol=1e-6, atol=1e-6)
