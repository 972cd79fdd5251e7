"""A level may be one a frame: what has levels [B, F] is what has each frame's level by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import noise, predictions, schedules
from diffusion_jax.core.process import q_posterior, q_sample, q_step
from diffusion_jax.core.types import Level
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.denoisers import classifier_free, clip_x0, make_denoiser
from diffusion_jax.objectives.losses import denoising
from diffusion_jax.samplers import SAMPLERS, sample

SHAPE = (2, 3, 4)  # examples, frames, numbers
SCHEDULE = schedules.vp()
T = np.array([[0.2, 0.5, 0.9], [0.7, 0.1, 0.4]])
RNG = np.random.default_rng(0)
X0, EPS, X = RNG.normal(size=(3, *SHAPE))


def _apply(params, x, t, cond):
    return jnp.tanh(x + jnp.reshape(t, t.shape + (1,) * (x.ndim - t.ndim)))


def _flat(a):
    """Frames as examples of their own."""
    return a.reshape(-1, *a.shape[2:])


def _denoisers(name):
    denoiser = make_denoiser(_apply, None, predictions.PREDICTIONS[name]())
    wider = make_denoiser(lambda *a: 0.5 * _apply(*a), None, predictions.PREDICTIONS[name]())
    return [
        denoiser,
        clip_x0(denoiser),
        classifier_free(denoiser, wider, 1.5, interval=(0.5, 4.0)),
    ]


@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "flow", "edm"])
def test_denoisers_and_processes(x64, name):
    level = SCHEDULE.level(T)
    each = Level(*map(_flat, level))
    x = q_sample(X0, EPS, level)
    np.testing.assert_allclose(_flat(x), q_sample(_flat(X0), _flat(EPS), each))
    cleaner = SCHEDULE.level(T / 2)
    np.testing.assert_allclose(
        _flat(q_posterior(X0, x, cleaner, level)[0]),
        q_posterior(_flat(X0), _flat(x), Level(*map(_flat, cleaner)), each)[0],
    )
    assert q_step(X0, EPS, cleaner, level).shape == SHAPE
    for denoiser in _denoisers(name):
        found, expected = denoiser(x, level), denoiser(_flat(x), each)
        np.testing.assert_allclose(_flat(found.x0), expected.x0, rtol=1e-12)
        np.testing.assert_allclose(_flat(found.eps), expected.eps, rtol=1e-12)


@pytest.mark.parametrize("weighting", [None, *WEIGHTINGS])
@pytest.mark.parametrize("name", ["eps", "v"])
def test_losses(x64, name, weighting):
    level = SCHEDULE.level(T)
    chosen = None if weighting is None else WEIGHTINGS[weighting]()
    loss = denoising(predictions.PREDICTIONS[name](), weighting=chosen)
    network = lambda x, t, cond: _apply(None, x, t, cond)
    found = loss(network, X0, EPS, level)
    apart = loss(network, _flat(X0), _flat(EPS), Level(*map(_flat, level)))
    assert found.shape == (2,)
    np.testing.assert_allclose(found, np.mean(np.reshape(apart, (2, 3)), axis=1), rtol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(x64, name):
    """A chain whose frames are at levels of their own; without noise it is that of each frame."""
    sampler = SAMPLERS[name]()
    ends = np.linspace(1.0, 0.05, 4)[:, None, None] * T
    grid = SCHEDULE.level(ends)
    denoiser = make_denoiser(_apply, None, predictions.v())
    keys = noise.example_keys(noise.key(0), np.arange(2))
    x = noise.initial_noise(keys, SHAPE[1:], jax.tree.map(lambda a: a[0], grid))
    found = sample(sampler, denoiser, keys, x, grid)
    assert found.shape == SHAPE and np.all(np.isfinite(found))
    if not sampler.draws_noise:
        flat = Level(*(a.reshape(4, -1) for a in grid))
        apart = sample(sampler, denoiser, None, _flat(x), flat)
        tolerance = 1e-2 if name == "adaptive_ode" else 1e-9
        np.testing.assert_allclose(_flat(found), apart, rtol=tolerance, atol=tolerance)
