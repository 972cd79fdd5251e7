"""ER-SDE and Restart against their papers' formulas, in NumPy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from chains import moments

from diffusion_jax.core import grids, noise, schedules
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.types import Level
from diffusion_jax.samplers import er_sde, restart, sample

MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))
X = np.random.default_rng(0).normal(size=(6, 2))
DRAWN = np.random.default_rng(1).normal(size=(12, 3, 6, 2))


def clean(y, u):
    """E[x0 | y], y = x0 + u eps."""
    return np.asarray(MIXTURE.denoiser(jnp.asarray(y), Level(0.0, 1.0, u)).x0)


@pytest.fixture
def recorded(monkeypatch):
    """Draw j of step i is DRAWN[i, j]."""

    def fold_in(keys, number):
        keys = jnp.asarray(keys)
        return jnp.array([number, 0]) if keys.shape == (6,) else keys.at[1].set(number)

    monkeypatch.setattr(noise, "fold_in", fold_in)
    monkeypatch.setattr(noise, "normal", lambda keys, shape: jnp.asarray(DRAWN)[keys[0], keys[1]])


def check(sampler, grid, algorithm):
    grid = Level(*(np.asarray(a, float) for a in grid))
    u = grid.sigma / grid.alpha
    chain = jax.jit(lambda x: sample(sampler, MIXTURE.denoiser, jnp.zeros(6), x, grid))
    found = chain(X * u[0] * grid.alpha[0])
    np.testing.assert_allclose(found, algorithm(X * u[0], u), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_er_sde_is_the_papers(recorded, x64, order):
    """Cui et al. 2023: solver 2, and 1 in its first step, as published, by the integral of 1 / phi;
    3 by the integral of x0 as Newton's polynomial."""
    phi = lambda u: u * (np.exp(u**0.3) + 10.0)
    slope = lambda u: np.exp(u**0.3) * (1.0 + 0.3 * u**0.3) + 10.0
    integral = lambda f, low, high: scipy.integrate.quad(f, low, high, epsabs=1e-13)[0]

    def algorithm(x, u):
        seen = []
        for i in range(len(u) - 1):
            t, s = u[i], u[i + 1]
            x0, kept = clean(x, t), phi(s) / phi(t)
            seen = [(t, x0), *seen][:order]
            mean = kept * x + (1.0 - kept) * x0
            if len(seen) > 1:
                (v, before) = seen[1]
                first = (x0 - before) / (t - v)
                mean = mean + (s - t + phi(s) * integral(lambda a: 1 / phi(a), s, t)) * first
            if len(seen) > 2:
                w, earlier = seen[2]
                second = (first - (before - earlier) / (v - w)) / (t - w)
                f = lambda a, t=t, v=v: (a - t) * (a - v) * slope(a) / phi(a) ** 2
                mean = mean + phi(s) * integral(f, s, t) * second
            x = mean + np.sqrt(s**2 - (t * kept) ** 2) * DRAWN[i, 0]
        return clean(x, u[-1])

    check(er_sde(order), grids.karras(schedules.vp(), 9), algorithm)


def test_er_sdes_moments_are_of_its_order(injected, x64, continuous):
    last = continuous.level(continuous.t_min)
    mean, std = 0.3, 0.5
    expected = last.alpha * std**2 / np.sqrt(last.alpha**2 * std**2 + last.sigma**2)
    errors = {}
    for order, steps in ((2, 64), (2, 128), (3, 128)):
        grid = grids.uniform(continuous, steps + 1)
        means, stds = moments(injected, er_sde(order), grid, mean, std)
        np.testing.assert_allclose(means[-1], mean, rtol=1e-9)
        errors[order, steps] = abs(float(stds[-1] - expected))
    np.testing.assert_allclose(np.log2(errors[2, 64] / errors[2, 128]), 2, atol=0.2)
    assert errors[3, 128] < 0.2 * errors[2, 128]


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_restart_goes_through_the_interval_again(recorded, x64, name):
    least, most, repeats, steps = 0.3, 3.0, 3, 4
    schedule = schedules.SCHEDULES[name]()

    def heun(x, t, s):
        d = (x - clean(x, t)) / t
        after = x + (s - t) * d
        return x + (s - t) * 0.5 * (d + (after - clean(after, s)) / s)

    def algorithm(x, u):
        restarted = 0
        for i in range(len(u) - 1):
            x = heun(x, u[i], u[i + 1])
            if u[i] > least >= u[i + 1]:
                inner = np.linspace(most ** (1 / 7), u[i + 1] ** (1 / 7), steps + 1) ** 7
                for k in range(repeats):
                    x = x + np.sqrt(most**2 - u[i + 1] ** 2) * DRAWN[i, k]
                    for t, s in zip(inner[:-1], inner[1:], strict=True):
                        x = heun(x, t, s)
                restarted += 1
        assert restarted == 1
        return clean(x, u[-1])

    sampler = restart(least, most, repeats, steps, schedule if name == "vp" else None)
    check(sampler, grids.karras(schedule, 9), algorithm)
