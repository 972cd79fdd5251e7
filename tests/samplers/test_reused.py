"""A sampler whose network keeps its deep features: a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import grids, schedules
from diffusion_jax.denoisers import with_eps
from diffusion_jax.samplers import ddim, heun_flow, reused, sample

GRID = grids.trailing(schedules.cosine(100), 8)


def network_of(calls):
    """x0 = tanh(x) + the features cos(x + sigma) / 2, which are kept."""

    def network(x, level, deep):
        jax.debug.callback(lambda kind: calls.append(kind), 0 if deep is None else 1)
        deep = (jnp.cos(x + level.sigma),) if deep is None else deep
        return with_eps(jnp.tanh(x) + 0.5 * deep[0], x, level), deep

    return network


def run(sampler, every, x):
    calls = []
    network = network_of(calls)
    plain = lambda x, level: network(x, level, None)[0]
    chain = jax.jit(lambda x: sample(reused(sampler, network, every), plain, None, x, GRID))
    x0 = chain(x)
    jax.effects_barrier()
    return np.asarray(x0), calls


@pytest.mark.parametrize("every", [1, 3])
def test_deep_features_are_those_of_the_last_whole_step(every):
    x = np.linspace(-2, 2, 6).reshape(2, 3)
    found, calls = run(ddim(), every, x)
    alpha, sigma = (np.asarray(a, float) for a in (GRID.alpha, GRID.sigma))
    for i in range(8):
        if i % every == 0 or i == 7:
            kept = np.cos(x + sigma[i])
        x0 = np.tanh(x) + 0.5 * kept
        x = x0 if i == 7 else alpha[i + 1] * x0 + sigma[i + 1] * (x - alpha[i] * x0) / sigma[i]
    np.testing.assert_allclose(found, x, atol=1e-5)
    whole = len([i for i in range(7) if i % every == 0])
    assert (calls.count(0), calls.count(1)) == (whole + 1, 7 - whole)


def test_a_second_call_within_a_step_uses_the_steps_features():
    _, calls = run(heun_flow(), 2, np.ones((1, 2)))
    assert (calls.count(0), calls.count(1)) == (4 + 1, 7 + 3)


def test_every_must_be_at_least_one():
    with pytest.raises(ValueError, match="every 1 or more steps, not every 0"):
        reused(ddim(), network_of([]), 0)
