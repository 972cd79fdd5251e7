import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax.core import schedules
from diffusion_jax.core import timesteps as distributions
from diffusion_jax.core.timesteps import TIMESTEPS

OBJECTIVES = (
    "lognormal",
    "logit_normal",
    "shifted",
    "karras",
)  # their weights are 1: the distribution is the paper's objective
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
    draw = lambda seed: timesteps.sample(
        timesteps.init(), jax.random.key(seed), jnp.arange(NUM), NUM
    )
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(np.arange(2)))


def test_t_keeps_to_the_schedules_range(schedule, drawn):
    t, weights = drawn
    assert t.shape == weights.shape == (2, NUM)
    assert t.min() >= schedule.t_min
    assert t.max() <= schedule.t_max
    assert np.issubdtype(t.dtype, np.integer) == (schedule.num_steps is not None)


@pytest.mark.parametrize(
    "timesteps", [name for name in TIMESTEPS if name not in OBJECTIVES], indirect=True
)
def test_t_is_as_frequent_as_its_weight_says(schedule, drawn):
    # weight = 1 / (T p): weighted, every distribution is uniform; for uniform t the counts are as
    # many in every bin
    (t, _), (weights, _) = drawn
    num_bins = schedule.num_steps or BINS
    bins = (
        t
        if schedule.num_steps
        else ((t - schedule.t_min) / (schedule.t_max - schedule.t_min) * BINS).astype(int)
    )
    counts = np.bincount(bins, minlength=num_bins)
    weight = np.array(
        [weights[bins == i].mean() if counts[i] else np.inf for i in range(num_bins)], float
    )
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


@pytest.mark.parametrize("timesteps", ["uniform", "low_discrepancy", *OBJECTIVES], indirect=True)
def test_weights_of_uniform_t_and_of_objectives_are_one(drawn):
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
    t, weights = jax.eval_shape(
        lambda index: timesteps.sample(state, jax.random.key(0), index, 4), np.arange(4)
    )
    after = jax.eval_shape(timesteps.update, state, t, weights)
    signature = lambda tree: jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert signature(state) == signature(after)


def _draw(distribution, num=8000):
    t, _ = jax.jit(lambda index: distribution.sample((), jax.random.key(3), index, num))(
        jnp.arange(num)
    )
    return np.asarray(t, np.float64)


@pytest.mark.parametrize("settings", [{}, {"mean": 0.5, "std": 0.4}])
def test_lognormal_noise_has_a_normal_log(settings):
    # Karras et al. 2022, table 1: ln sigma ~ N(-1.2, 1.2^2), sigma the noise over the signal
    expected = scipy.stats.norm(settings.get("mean", -1.2), settings.get("std", 1.2))
    sigma = _draw(distributions.lognormal(schedules.edm(), **settings))
    assert scipy.stats.kstest(np.log(sigma), expected.cdf).pvalue > 1e-3
    t = _draw(distributions.lognormal(schedules.rectified_flow(), **settings))
    assert scipy.stats.kstest(np.log(t / (1 - t)), expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("settings", [{}, {"mean": -0.5, "std": 0.6}])
def test_logit_normal_t_has_a_normal_logit(settings):
    schedule = schedules.rectified_flow(t_min=0.1, t_max=0.6)
    u = (_draw(distributions.logit_normal(schedule, **settings)) - 0.1) / 0.5
    expected = scipy.stats.norm(settings.get("mean", 0), settings.get("std", 1))
    assert scipy.stats.kstest(np.log(u / (1 - u)), expected.cdf).pvalue > 1e-3


def _shifted(t, s):
    """SD3's shift, by the noise: the odds of t, sigma / alpha, become s times as large."""
    odds = s * t / (1 - t)
    return odds / (1 + odds)


@pytest.mark.parametrize("shift", [3.0, 0.5])
def test_a_shift_of_t_is_that_of_the_paper(shift):
    whole = schedules.rectified_flow(t_min=1e-6, t_max=1.0)
    u = _shifted(_draw(distributions.shifted(whole, shift)), 1 / shift)
    assert scipy.stats.kstest(u, scipy.stats.uniform().cdf).pvalue > 1e-3
    normal = _draw(distributions.logit_normal(whole, 0.2, 0.7, shift))
    plain = _shifted(_draw(distributions.logit_normal(whole, 0.2, 0.7)), shift)
    np.testing.assert_allclose(normal, plain, atol=1e-5)


def test_on_a_table_objectives_give_the_nearest_index():
    bar = np.cumprod(1 - schedules.cosine_betas(20))
    log_sigma = 0.5 * np.log((1 - bar) / bar)
    middle = (np.arange(19) + 0.5) / 19
    edges = {  # of the normal numbers, between one index and the next
        "lognormal": (0.5 * (log_sigma[1:] + log_sigma[:-1]) + 1.2) / 1.2,
        "logit_normal": np.log(middle / (1 - middle)),
    }
    for name in edges:
        t = _draw(TIMESTEPS[name](schedules.cosine(20)))
        probabilities = np.diff(
            scipy.stats.norm.cdf(np.concatenate([[-np.inf], edges[name], [np.inf]]))
        )
        counts, expected = np.bincount(t.astype(int), minlength=20), len(t) * probabilities
        common = expected > 10
        counts, expected = (np.append(a[common], a[~common].sum()) for a in (counts, expected))
        assert scipy.stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3, (
            name
        )


def test_noise_beyond_the_schedule_is_clipped_to_its_ends():
    for mean, end in ((-30.0, 0.002), (30.0, 80.0)):
        np.testing.assert_allclose(
            _draw(distributions.lognormal(schedules.edm(), mean=mean), 8), end
        )
