"""Chains are differentiable: gradients through every sampler are finite and those of finite
differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import grids, noise, predictions, schedules
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.samplers import SAMPLERS, sample

X = np.random.default_rng(0).normal(size=(2, 3))
GRID = grids.logsnr(schedules.vp(), 4)
IN_DOUBLE = ("unipc", "dpmpp_2m", "heun", "ddim", "adaptive_ode")


def _network(params, x, t, cond):
    return params * jnp.tanh(x + 0.1 * t[:, None])


def _loss(name):
    sampler = SAMPLERS[name](**({"rtol": 1e-9, "atol": 1e-9} if name == "adaptive_ode" else {}))

    def loss(x, w):
        denoiser = make_denoiser(_network, w, predictions.v())
        keys = noise.example_keys(noise.key(0), np.arange(2))
        return jnp.sum(jnp.sin(sample(sampler, denoiser, keys, x, GRID)))

    return jax.jit(loss), jax.jit(jax.grad(loss, (0, 1)))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in IN_DOUBLE[1:]])
def test_gradients_through_a_chain_are_finite(name):
    _, gradient = _loss(name)
    of_x, of_w = gradient(X.astype(np.float32), 0.7)
    assert np.all(np.isfinite(of_x)) and np.isfinite(of_w) and np.any(of_x != 0.0)


@pytest.mark.parametrize("name", IN_DOUBLE)
def test_gradients_through_a_chain_are_those_of_differences(x64, name):
    loss, gradient = _loss(name)
    of_x, of_w = gradient(X, 0.7)
    direction, h = np.random.default_rng(1).normal(size=X.shape), 1e-5
    along_x = (loss(X + h * direction, 0.7) - loss(X - h * direction, 0.7)) / (2 * h)
    along_w = (loss(X, 0.7 + h) - loss(X, 0.7 - h)) / (2 * h)
    np.testing.assert_allclose(np.sum(of_x * direction), along_x, rtol=1e-6)
    np.testing.assert_allclose(of_w, along_w, rtol=1e-6)
