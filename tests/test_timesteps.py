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
    return schedules.linear(40) if request.param == "table" else continuous


@pytest.fixture(scope="module", params=TIMESTEPS)
def timesteps(request, schedule):
    try:
        return TIMESTEPS[request.param](schedule)
    except ValueError as error:
        if schedule.num_steps is None and "needs a table" in str(error):
            pytest.skip(str(error))
        raise


@pytest.fixture(scope="module")
def drawn(timesteps):
    """t and weights, [2, NUM] each, from two keys."""
    draw = lambda seed: timesteps.sample(timesteps.init(), jax.random.key(seed), jnp.arange(NUM), NUM)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(np.arange(2)))


def test_t_keeps_to_the_schedules_range(schedule, drawn):
    t, weights = drawn
    assert t.shape == weights.shape == (2, NUM)
    assert t.min() >= schedule.t_min
    assert t.max() <= schedule.t_max
    assert np.issubdtype(t.dtype, np.integer) == (schedule.num_steps is not None)


def test_t_is_as_frequent_as_its_weight_says(schedule, drawn):
    # weight = 1 / (T p): weighted, every distribution is uniform; for uniform t the counts are as many in every bin
    (t, _), (weights, _) = drawn
    num_bins = schedule.num_steps or BINS
    bins = t if schedule.num_steps else ((t - schedule.t_min) / (schedule.t_max - schedule.t_min) * BINS).astype(int)
    counts = np.bincount(bins, minlength=num_bins)
    weight = np.array([weights[bins == i].mean() if counts[i] else np.inf for i in range(num_bins)], float)
    expected = NUM / num_bins / weight
    rare = expected < 10  # together they make one bin, for the chi-square law needs some in each
    if rare.any():
        counts, expected = np.append(counts[~rare], counts[rare].sum()), expected[~rare]
        expected = np.append(expected, NUM - expected.sum())
    np.testing.assert_allclose(expected.sum(), NUM, rtol=1e-5)
    assert scipy.stats.chisquare(counts, expected * NUM / expected.sum()).pvalue > 1e-3


def test_weights_average_one(drawn):
    _, (weights, _) = drawn
    np.testing.assert_allclose(weights.mean(), 1.0, atol=1e-6 + 4 * weights.std() / np.sqrt(NUM))


@pytest.mark.parametrize("timesteps", ["uniform", "low_discrepancy"], indirect=True)
def test_uniform_weights_are_one(drawn):
    _, weights = drawn
    np.testing.assert_array_equal(weights, np.ones((2, NUM)))


def test_example_i_meets_the_same_t_in_any_batch(timesteps):
    draw = jax.jit(lambda index: timesteps.sample(timesteps.init(), jax.random.key(0), index, 8))
    whole = draw(np.arange(8))
    index = np.array([6, 1, 3])
    for a, b in zip(draw(index), whole, strict=True):
        np.testing.assert_array_equal(a, np.asarray(b)[index])


def test_examples_and_keys_meet_different_t(drawn):
    (first, second), _ = drawn
    assert len(np.unique(first)) > 4
    assert np.mean(first == second) < 0.6


def test_the_state_keeps_its_structure(timesteps):
    # it rides in a jitted step's carry
    state = timesteps.init()
    t, weights = jax.eval_shape(lambda index: timesteps.sample(state, jax.random.key(0), index, 4), np.arange(4))
    after = jax.eval_shape(timesteps.update, state, t, weights)
    signature = lambda tree: jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert signature(state) == signature(after)
