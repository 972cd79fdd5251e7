"""What the tests of samplers share: denoisers, noise in place of Threefry's, and exact moments of a
chain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.noise import example_keys, initial_noise
from diffusion_jax.core.types import Level, Prediction, Sampler
from diffusion_jax.samplers import sample

KEY = jax.random.key(0)
SHAPE = (2, 2, 1)


def gaussian(mean, std):
    """The exact denoiser of N(mean, std^2) data."""

    def denoiser(x, level):
        level = level.expand(x.ndim)
        gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
        x0 = mean + gain * (x - level.alpha * mean)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoiser


def wavy(x, level):
    """A denoiser of no particular data."""
    level = level.expand(x.ndim)
    x0 = jnp.tanh(x + jnp.cos(0.1 * level.t))
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


def start(grid):
    return Level(*(a[0] for a in grid))


def run(sampler, denoiser, grid, index=(0, 1, 2), shape=SHAPE, trajectory=False):
    """Samples number index, each from its key alone."""

    @jax.jit
    def run(index):
        keys = example_keys(KEY, index)
        return sample(
            sampler, denoiser, keys, initial_noise(keys, shape, start(grid)), grid, trajectory
        )

    return run(np.array(index))


@pytest.fixture
def injected(monkeypatch):
    """(sampler, noise [N - 1, B, ...]) -> the sampler whose step i draws noise[i], one draw a step,
    whatever its keys; with more draws a step, noise is [(N - 1) draws, B, ...], in their order."""

    jax.clear_caches()  # chains that were compiled with other noise

    def inject(sampler, noise, draws=1):
        def step(keys, denoiser, x, state, t, s):
            i, state = state
            left = [jnp.asarray(noise)[draws * i + j] for j in reversed(range(draws))]
            monkeypatch.setattr("diffusion_jax.core.noise.normal", lambda keys, shape: left.pop())
            monkeypatch.setattr("diffusion_jax.core.noise.fold_in", lambda keys, number: keys)
            x, state = sampler.step(keys, denoiser, x, state, t, s)
            return x, (i + 1, state)

        return Sampler(lambda x, level: (0, sampler.init(x, level)), step)

    yield inject
    jax.clear_caches()


@pytest.fixture
def noise_by_index(monkeypatch):
    """Keys are indices into a fixed array of noise. Threefry takes the compiler most of a
    second."""
    jax.clear_caches()  # chains that were compiled with other noise
    noise = np.random.default_rng(1).normal(size=(3, 12))
    monkeypatch.setattr(
        "diffusion_jax.core.noise.normal",
        lambda keys, shape: jnp.asarray(noise)[keys][:, : np.prod(shape)].reshape(-1, *shape),
    )
    monkeypatch.setattr("diffusion_jax.core.noise.fold_in", lambda keys, number: keys)
    yield
    jax.clear_caches()


def moments(injected, sampler, grid, mean, std, draws=1):
    """Means [N + 1] and deviations [N + 1] of a chain on N(mean, std^2) data; exact, as it is
    affine in its noise, of so many draws a step."""
    num, first = 1 + draws * (len(grid.t) - 1), start(grid)
    # the first of N noises makes x_T, the others go to the steps; example 0 has none, example i + 1
    # one unit of noise i
    noise = np.concatenate([np.zeros((1, num)), np.eye(num)])
    x_init = first.alpha * mean + np.sqrt(first.alpha**2 * std**2 + first.sigma**2) * noise[:, :1]
    noisy = injected(sampler, noise[:, 1:].T[..., None], draws)
    chain = lambda x: sample(noisy, gaussian(mean, std), None, x, grid, trajectory=True)
    xs = np.asarray(jax.jit(chain)(x_init)[1].x)[..., 0]
    return xs[:, 0], np.linalg.norm(xs[:, 1:] - xs[:, :1], axis=1)
