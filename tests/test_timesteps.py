import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax import schedules
from diffusion_jax.timesteps import TIMESTEPS

BINS = 20
NUM = 4000


@pytest.fixture(scope="module", params=["table", "continuous"])
def schedule(request, continuous):
    return schedules.linear(100) if request.param == "table" else continuous


def _draw(timesteps, seeds=1, num=NUM):
    """[seeds, num] t and weights."""
    draw = lambda seed: timesteps.sample(timesteps.init(), jax.random.key(seed), jnp.arange(num), num)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(np.arange(seeds)))


@pytest.mark.parametrize("name", TIMESTEPS)
def test_t_fills_the_schedules_range_evenly_with_weights_of_mean_one(schedule, name):
    t, weights = _draw(TIMESTEPS[name](schedule))
    assert t.shape == weights.shape == (1, NUM)
    np.testing.assert_allclose(weights.mean(), 1.0, rtol=0.05)
    assert t.min() >= schedule.t_min
    assert t.max() <= schedule.t_max
    if schedule.num_steps is not None:
        assert jnp.issubdtype(t.dtype, jnp.integer)
        counts = np.bincount(t[0], minlength=schedule.num_steps)
    else:
        counts, _ = np.histogram(t, bins=BINS, range=(schedule.t_min, schedule.t_max))
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("name", TIMESTEPS)
def test_example_i_meets_the_same_t_in_any_batch(schedule, name):
    timesteps = TIMESTEPS[name](schedule)
    draw = jax.jit(lambda index: timesteps.sample(timesteps.init(), jax.random.key(0), index, 8))
    whole = draw(np.arange(8))
    for index in (np.array([5]), np.array([6, 1, 3])):
        for a, b in zip(draw(index), whole, strict=True):
            np.testing.assert_array_equal(a, np.asarray(b)[index])


@pytest.mark.parametrize("name", TIMESTEPS)
def test_examples_and_keys_meet_different_t(schedule, name):
    (first, second), _ = _draw(TIMESTEPS[name](schedule), seeds=2, num=32)
    assert len(np.unique(first)) > 16
    assert np.mean(first == second) < 0.2


@pytest.mark.parametrize("name", TIMESTEPS)
def test_the_state_keeps_its_structure(schedule, name):
    # it rides in a jitted step's carry
    timesteps = TIMESTEPS[name](schedule)
    state = timesteps.init()
    t, _ = timesteps.sample(state, jax.random.key(0), jnp.arange(4), 4)
    after = timesteps.update(state, t, jnp.ones(4))
    signature = lambda tree: jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert signature(state) == signature(after)
