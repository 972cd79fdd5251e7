"""The distributions of t that are not uniform: importance sampling by second moments or by score
norms, and low discrepancy."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax.core import schedules, timesteps

NUM = 20000


def _draw(distribution, state, seed=0, num=NUM):
    draw = jax.jit(lambda state, key: distribution.sample(state, key, jnp.arange(num), num))
    return map(np.asarray, draw(state, jax.random.key(seed)))


def _full(distribution, num_steps, moment, history=10):
    """A state whose history is full, with E[L_t^2] = moment[t]."""
    t = np.tile(np.arange(num_steps), history)
    losses = np.sqrt(moment)[t] * np.repeat(np.linspace(0.5, 1.5, history), num_steps)
    losses /= np.sqrt(np.mean(np.linspace(0.5, 1.5, history) ** 2))
    return jax.jit(distribution.update)(distribution.init(), t, losses.astype(np.float32))


class Deques:
    """The peer's sampler, in plain Python."""

    def __init__(self, num_steps, history=10):
        self.losses = [collections.deque(maxlen=history) for _ in range(num_steps)]

    def update(self, t, losses):
        for one, loss in zip(t, losses, strict=True):
            self.losses[one].append(float(loss))

    def probabilities(self, uniform_part=0.001):
        num_steps = len(self.losses)
        if any(len(losses) < losses.maxlen for losses in self.losses):
            return np.full(num_steps, 1 / num_steps)
        root = np.sqrt([np.mean(np.square(losses)) for losses in self.losses])
        return (1 - uniform_part) * root / root.sum() + uniform_part / num_steps


# Second moments


def test_the_probabilities_after_each_round_are_the_peers(reference):
    peer = reference("importance.npz")
    distribution = timesteps.second_moment(schedules.cosine(8))
    state, update = distribution.init(), jax.jit(distribution.update)
    learned = 0
    for t, losses, expected in zip(
        peer["timesteps"], peer["losses"], peer["probabilities"], strict=True
    ):
        state = update(state, t, jnp.asarray(losses, jnp.float32))
        np.testing.assert_allclose(
            timesteps.second_moment_probabilities(state), expected, atol=1e-6
        )
        learned += np.ptp(expected) > 0.01
    assert learned >= 3  # the record goes beyond the warm-up


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_jitted_update_with_a_whole_batch_is_a_deque_example_by_example(rows):
    # with batches in which one t comes up many times, more often than its history is long
    rng = np.random.default_rng(rows)
    distribution = timesteps.second_moment(schedules.cosine(5))
    state, update, deques = distribution.init(), jax.jit(distribution.update), Deques(5)
    for _ in range(6):
        t = rng.choice(5, size=rows, p=[0.5, 0.2, 0.1, 0.1, 0.1])
        losses = rng.exponential(size=rows).astype(np.float32)
        state = update(state, t, losses)
        deques.update(t, losses)
        for row, count, expected in zip(
            state["losses"], state["counts"], deques.losses, strict=True
        ):
            assert count == len(expected)
            np.testing.assert_array_equal(
                row[: len(expected)], np.float32(expected)
            )  # the oldest first
        np.testing.assert_allclose(
            timesteps.second_moment_probabilities(state), deques.probabilities(), rtol=1e-5
        )
    assert rows < 64 or np.ptp(deques.probabilities()) > 0


def test_the_history_and_the_uniform_part_are_settings():
    distribution = timesteps.second_moment(schedules.cosine(3), history=2, uniform_part=0.3)
    deques = Deques(3, history=2)
    t, losses = [0, 1, 2, 2, 2, 1, 0, 0], np.array([5, 1, 9, 2, 3, 1, 4, 2.0], np.float32)
    deques.update(t, losses)
    state = jax.jit(distribution.update)(distribution.init(), np.array(t), losses)
    expected = deques.probabilities(0.3)
    np.testing.assert_allclose(
        timesteps.second_moment_probabilities(state, 0.3), expected, rtol=1e-6
    )
    _, weights = _draw(distribution, state, num=500)
    np.testing.assert_allclose(np.unique(weights), np.unique(1 / (3 * expected)), rtol=1e-5)


def test_it_is_uniform_until_every_history_is_full():
    distribution = timesteps.second_moment(schedules.cosine(4))
    t = np.repeat(np.arange(4), 10)[:-1]  # one loss is missing
    state = jax.jit(distribution.update)(distribution.init(), t, np.arange(39, dtype=np.float32))
    np.testing.assert_allclose(timesteps.second_moment_probabilities(state), np.full(4, 0.25))
    _, weights = _draw(distribution, state, num=100)
    np.testing.assert_allclose(weights, np.ones(100), rtol=1e-6)


def test_losses_of_zero_leave_the_uniform_part():
    distribution = timesteps.second_moment(schedules.cosine(4))
    p = timesteps.second_moment_probabilities(
        _full(distribution, 4, np.array([0.0, 0.0, 1.0, 0.0]))
    )
    np.testing.assert_allclose(p, [0.00025, 0.00025, 0.99925, 0.00025], rtol=1e-5)
    p = timesteps.second_moment_probabilities(_full(distribution, 4, np.zeros(4)))
    assert np.all(np.isfinite(p))


# The draw


def _second_moment(num_steps):
    moment = np.linspace(0.2, 3.0, num_steps)[::-1] ** 4
    distribution = timesteps.second_moment(schedules.linear(num_steps))
    root = np.sqrt(moment)
    return (
        distribution,
        _full(distribution, num_steps, moment),
        0.999 * root / root.sum() + 0.001 / num_steps,
    )


def _score_norm(num_steps):
    schedule = schedules.linear(num_steps)
    # E||grad log q(x_t | x0)||^2 / dim = E[eps^2] / sigma^2
    inverse = 1 / (1 - np.cumprod(1 - schedules.linear_betas(num_steps)))
    return timesteps.score_norm(schedule), (), inverse / inverse.sum()


CASES = {
    "second_moment": functools.cache(_second_moment),
    "score_norm": functools.cache(_score_norm),
}


@pytest.mark.parametrize(
    ("name", "num_steps"), [("second_moment", 20), ("second_moment", 1000), ("score_norm", 1000)]
)
def test_the_draw_follows_p_with_weights_of_one_over_t_p(name, num_steps):
    distribution, state, p = CASES[name](num_steps)
    t, weights = _draw(distribution, state)
    np.testing.assert_allclose(weights, 1 / (num_steps * p[t]), rtol=2e-5)
    group = (np.cumsum(p) * 40 * (1 - 1e-9)).astype(
        int
    )  # neighbours that have a fortieth of the mass together
    observed, expected = (
        np.bincount(group[t], minlength=40),
        NUM * np.bincount(group, p, minlength=40),
    )
    filled = expected > 5
    assert filled.sum() > 5
    assert observed[~filled].sum() == 0
    assert scipy.stats.chisquare(observed[filled], expected[filled]).pvalue > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_weighted_losses_have_the_mean_of_uniform_t(name):
    num_steps = 50
    distribution, state, p = CASES[name](num_steps)
    t, weights = _draw(distribution, state, seed=1)
    for loss in (
        np.ones(num_steps),
        np.arange(num_steps) / num_steps,
        p / p.max(),
        np.cos(np.arange(num_steps)),
    ):
        weighted = weights * loss[t]
        error = weighted.mean() - loss.mean()
        assert abs(error) < 4 * weighted.std() / np.sqrt(NUM) + 1e-5
    # no tautology: without the weights the mean is another
    assert abs(loss[t].mean() - loss.mean()) > 4 * loss[t].std() / np.sqrt(NUM)


def test_sampling_in_proportion_to_the_loss_has_no_variance():
    # what importance sampling is for (Nichol & Dhariwal 2021, section 3.3): but for the uniform
    # part L / p is constant
    distribution, state, p = CASES["second_moment"](50)
    root = np.linspace(0.2, 3.0, 50)[::-1] ** 2
    t, weights = _draw(distribution, state)
    assert np.std(weights * root[t]) < 0.01 * np.std(root)


@pytest.mark.parametrize("name", CASES)
def test_the_draw_is_the_same_whatever_the_devices(name):
    distribution, state, _ = CASES[name](20)
    draw = jax.jit(lambda index: distribution.sample(state, jax.random.key(3), index, 16))
    whole = draw(jnp.arange(16))
    parts = [draw(jnp.arange(start, start + 4)) for start in range(0, 16, 4)]
    for a, b in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(a, np.concatenate(b))


def test_no_index_falls_outside_a_long_table():
    # the cumulative sum of 4000 float32 probabilities does not end at 1
    num_steps = 4000
    distribution, state, _ = CASES["score_norm"](num_steps)
    t, weights = _draw(distribution, state)
    assert t.min() >= 0
    assert t.max() < num_steps
    assert np.all(np.isfinite(weights))


def test_importance_sampling_of_continuous_time_is_a_clear_error(continuous):
    for factory in (timesteps.second_moment, timesteps.score_norm):
        with pytest.raises(ValueError, match="table"):
            factory(continuous)


# Low discrepancy


def _batches(schedule, total, seeds=20):
    """t of whole batches [seeds, total], sorted; the weights are 1."""
    distribution = timesteps.low_discrepancy(schedule)
    draw = lambda seed: distribution.sample((), jax.random.key(seed), jnp.arange(total), total)
    t, weights = jax.jit(jax.vmap(draw))(np.arange(seeds))
    np.testing.assert_array_equal(weights, np.ones((seeds, total)))
    return np.sort(t, axis=1)


@pytest.mark.parametrize("total", [1, 50, 64])
def test_low_discrepancy_has_one_t_in_every_stratum(total, continuous):
    u = (_batches(continuous, total) - continuous.t_min) / (continuous.t_max - continuous.t_min)
    np.testing.assert_array_equal(np.floor(u * total), np.tile(np.arange(total), (20, 1)))


def test_low_discrepancy_on_a_table_has_one_t_in_every_stratum():
    schedule = schedules.linear(200)
    np.testing.assert_array_equal(_batches(schedule, 50) // 4, np.tile(np.arange(50), (20, 1)))
    np.testing.assert_array_equal(
        _batches(schedule, 200), np.tile(np.arange(200), (20, 1))
    )  # as large as the table: each once


def test_low_discrepancy_is_uniform_for_each_example():
    distribution = timesteps.low_discrepancy(schedules.linear(20))
    draw = jax.jit(
        jax.vmap(lambda seed: distribution.sample((), jax.random.key(seed), jnp.arange(3), 8)[0])
    )
    for t in np.asarray(draw(np.arange(4000))).T:
        assert scipy.stats.chisquare(np.bincount(t, minlength=20)).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["table", "continuous"])
def test_low_discrepancy_does_not_depend_on_how_the_batch_is_split(kind, continuous):
    distribution = timesteps.low_discrepancy(
        schedules.linear(200) if kind == "table" else continuous
    )
    draw = lambda index: np.asarray(distribution.sample((), jax.random.key(5), index, 12)[0])
    whole = draw(jnp.arange(12))
    for parts in (3, 12):
        # to the last bit but one, which may hang on the compiled shape
        np.testing.assert_allclose(
            np.concatenate([draw(part) for part in np.split(np.arange(12), parts)]),
            whole,
            rtol=1e-5,
        )


def test_low_discrepancy_has_less_variance_than_uniform():
    schedule = schedules.linear(1000)
    loss = lambda t: np.cos(t * np.pi / 1000)
    spread = {}
    for name in ("uniform", "low_discrepancy"):
        distribution = timesteps.TIMESTEPS[name](schedule)
        draw = jax.vmap(
            lambda seed, d=distribution: d.sample((), jax.random.key(seed), jnp.arange(32), 32)[0]
        )
        spread[name] = np.std(loss(np.asarray(jax.jit(draw)(np.arange(200)))).mean(axis=1))
    np.testing.assert_allclose(
        spread["uniform"], np.sqrt(0.5 / 32), rtol=4 / np.sqrt(400)
    )  # independent: sd / sqrt(batch)
    # only the shift is random: it cuts a batch's mean by the jump of the loss, from 1 to -1, over
    # the batch's size
    assert spread["low_discrepancy"] < 2 / 32


def _one_after_the_other(state, t, losses, history):
    """Nichol & Dhariwal 2021's update, an example at a time."""
    rows, counts = np.array(state["losses"]), np.array(state["counts"])
    for i, loss in zip(np.asarray(t), np.asarray(losses), strict=True):
        if counts[i] == history:
            rows[i] = np.append(rows[i, 1:], loss)
        else:
            rows[i, counts[i]] = loss
            counts[i] += 1
    return rows, counts


def test_a_step_is_its_examples_one_after_the_other():
    # several examples of one t, in their order, histories partly full, more examples than history
    rng, history = np.random.default_rng(0), 3
    distribution = timesteps.second_moment(schedules.cosine(6), history)
    update = jax.jit(distribution.update)
    state = distribution.init()
    for size in (1, 2, 5, 16, 7, 40, 3):
        t = rng.integers(0, 6, size) if size != 7 else np.full(size, 4)
        losses = rng.normal(size=size).astype(np.float32)
        rows, counts = _one_after_the_other(state, t, losses, history)
        state = update(state, t, losses)
        np.testing.assert_array_equal(state["losses"], rows)
        np.testing.assert_array_equal(state["counts"], counts)
    assert "while" not in str(jax.make_jaxpr(update)(state, t, losses))
