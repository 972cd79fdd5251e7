"""Gradients of L_vlb and L_hybrid: what reaches the mean, what reaches the variance, and that
nothing is ever infinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffusion_jax.core import predictions, schedules
from diffusion_jax.core.process import VARIANCES
from diffusion_jax.objectives.losses import denoising, hybrid, vlb

NUM_STEPS = 200
T = np.array([0, 1, 2, 50, 120, 198, 199])
SHAPE = (len(T), 2, 2, 3)
LN2 = np.log(2.0)


def _parameterization(name, schedule):
    return predictions.mean(schedule) if name == "mean" else predictions.PREDICTIONS[name]()


def _data(shape=SHAPE):
    """8-bit x0, eps, the network's mean part and its variance part."""
    rng = np.random.default_rng(0)
    x0 = (2.0 * rng.integers(256, size=shape) / 255.0 - 1.0).astype(np.float32)
    return (
        x0,
        *rng.normal(size=(2, *shape)).astype(np.float32),
        rng.uniform(-1, 1, shape).astype(np.float32),
    )


def _gradients(loss, schedule, t=T, data=None):
    """Gradients of the summed losses by the mean part and by the variance part of the network's
    output."""
    x0, eps, mean, variance = _data() if data is None else data
    level = schedule.level(t)
    total = lambda mean, variance: jnp.sum(
        loss(lambda x, t, cond: jnp.concatenate([mean, variance], axis=-1), x0, eps, level)
    )
    return jax.jit(jax.grad(total, (0, 1)))(mean, variance)


@pytest.mark.parametrize("name", ["eps", "v", "mean"])
def test_the_means_gradient_of_hybrid_is_that_of_l_simple_exactly(name):
    schedule = schedules.cosine(NUM_STEPS)
    parameterization = _parameterization(name, schedule)
    (of_mean, of_variance) = _gradients(hybrid(parameterization, schedule), schedule)
    (simple, nothing) = _gradients(denoising(parameterization), schedule)
    np.testing.assert_array_equal(of_mean, simple)
    np.testing.assert_array_equal(nothing, np.zeros(SHAPE))
    assert np.all(np.any(np.asarray(of_variance) != 0, axis=(1, 2, 3)))


@pytest.mark.parametrize("coefficient", [0.001, 0.5])
def test_the_variances_gradient_of_hybrid_is_the_coefficient_times_t_times_that_of_the_term(
    coefficient,
):
    # the closed form of d KL / d v, v in [-1, 1] the network's output and (v + 1) / 2 the fraction
    schedule = schedules.linear(NUM_STEPS)
    x0, eps, output, v = (np.float64(a) for a in _data())
    _, found = _gradients(hybrid(predictions.eps(), schedule, coefficient), schedule)
    betas = schedules.linear_betas(NUM_STEPS)
    bar = np.cumprod(1 - betas)
    for row, t in enumerate(T):
        if t == 0:
            continue  # the decoder's: below
        x_t = np.sqrt(bar[t]) * x0[row] + np.sqrt(1 - bar[t]) * eps[row]
        error = (x_t - np.sqrt(1 - bar[t]) * output[row]) / np.sqrt(bar[t]) - x0[row]
        shift = np.sqrt(bar[t - 1]) * betas[t] / (1 - bar[t]) * error
        small, large = np.log(betas[t] * (1 - bar[t - 1]) / (1 - bar[t])), np.log(betas[t])
        log_variance = (v[row] + 1) / 2 * large + (1 - v[row]) / 2 * small
        of_log_variance = 0.5 * (
            1 - np.exp(small - log_variance) - shift**2 * np.exp(-log_variance)
        )
        scale = coefficient * NUM_STEPS * (large - small) / 2 / x0[row].size / LN2
        # float32: the range between two logarithms is known to 6e-7, and the difference of two
        # numbers near 1 to 2e-7
        rtol = 1e-3 + 6e-7 / (large - small)
        np.testing.assert_allclose(
            found[row], scale * of_log_variance, rtol=rtol, atol=2e-7 * scale, err_msg=f"t = {t}"
        )


def test_the_variances_gradient_of_hybrid_is_that_of_vlb_at_t_0_too():
    schedule = schedules.cosine(NUM_STEPS)
    _, found = _gradients(hybrid(predictions.v(), schedule), schedule)
    of_mean, expected = _gradients(vlb(predictions.v(), schedule), schedule)
    np.testing.assert_allclose(
        found, 0.001 * NUM_STEPS * np.asarray(expected), rtol=1e-5, atol=1e-8
    )
    # L_vlb itself moves both halves, unless its mean is frozen
    assert np.all(np.any(np.asarray(of_mean) != 0, axis=(1, 2, 3)))
    of_mean, frozen = _gradients(vlb(predictions.v(), schedule, frozen_mean=True), schedule)
    np.testing.assert_array_equal(of_mean, np.zeros(SHAPE))
    np.testing.assert_allclose(frozen, expected, rtol=1e-5, atol=1e-8)


def test_the_gradient_of_l_0_is_that_of_the_likelihood_of_its_bin():
    # a bin's integral loses and gains at its two edges, which move with the mean, and with the
    # scale away from it
    schedule = schedules.linear(NUM_STEPS)
    betas = schedules.linear_betas(NUM_STEPS)
    small = np.log(betas[1] * betas[0] / (1 - np.cumprod(1 - betas)[1]))
    half_range = (np.log(betas[0]) - small) / 2
    rng = np.random.default_rng(1)
    x0 = 2.0 * rng.integers(256, size=(1, 8)) / 255.0 - 1.0
    x0[0, :2] = [-1, 1]
    guess, v = x0 + 0.02 * rng.normal(size=x0.shape), rng.uniform(-1, 1, x0.shape)
    data = [np.float32(a) for a in (x0, rng.normal(size=x0.shape), guess, v)]
    found = _gradients(vlb(predictions.x0(), schedule), schedule, np.array([0]), data)
    scale = np.exp(0.5 * (small + (v + 1) * half_range))
    low = np.where(x0 < -0.999, -np.inf, (x0 - 1 / 255 - guess) / scale)
    high = np.where(x0 > 0.999, np.inf, (x0 + 1 / 255 - guess) / scale)
    probability = norm.cdf(high) - norm.cdf(low)
    of_mean = (norm.pdf(low) - norm.pdf(high)) / scale / probability
    edge = lambda z: np.where(np.isfinite(z), z, 0.0) * norm.pdf(z)
    of_log_variance = 0.5 * (edge(low) - edge(high)) / probability
    np.testing.assert_allclose(found[0], -of_mean / x0.size / LN2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        found[1], -of_log_variance * half_range / x0.size / LN2, rtol=1e-3, atol=1e-6
    )


def test_the_network_is_called_once():
    schedule = schedules.linear(NUM_STEPS)
    x0, eps, mean, v = _data()
    calls, labels = [], np.arange(len(T))

    def network(x, t, cond):
        calls.append(cond)
        return np.concatenate([mean, v], axis=-1)

    jax.eval_shape(
        lambda x0: hybrid(predictions.eps(), schedule)(network, x0, eps, schedule.level(T), labels),
        x0,
    )
    assert len(calls) == 1
    assert calls[0] is labels


def test_hybrid_is_the_sum_of_its_parts_with_either_norm():
    schedule = schedules.linear(NUM_STEPS)
    x0, eps, mean, v = _data()

    @jax.jit
    def values(x0, eps):
        arguments = (
            lambda x, t, cond: jnp.concatenate([mean, v], axis=-1),
            x0,
            eps,
            schedule.level(T),
        )
        both = [
            hybrid(predictions.eps(), schedule, 0.01, norm)(*arguments) for norm in ("l2", "l1")
        ]
        return *both, vlb(predictions.eps(), schedule)(*arguments)

    l2, l1, bits = map(np.asarray, values(x0, eps))
    for found, simple in ((l2, (mean - eps) ** 2), (l1, np.abs(mean - eps))):
        np.testing.assert_allclose(
            found, simple.mean(axis=(1, 2, 3)) + 0.01 * NUM_STEPS * bits, rtol=1e-5
        )


# Nothing is infinite


def _check_finite(table, name, variance, t):
    kind, num_steps = table.split()
    schedule = schedules.SCHEDULES[kind](int(num_steps))
    x0, eps, mean, v = _data((len(t), 8))
    x0[:, :2] = [-1, 1]
    loss = vlb(_parameterization(name, schedule), schedule, variance, scaled=True)

    def total(mean, v):
        # a fraction beyond [0, 1], as a network without an activation at its end may give
        network = lambda x, t, cond: jnp.concatenate([mean, 3 * v], -1)
        return jnp.sum(loss(network, x0, eps, schedule.level(t)))

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(mean, v)
    assert np.isfinite(value)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
    assert np.all(np.any(np.asarray(gradients[0]) != 0, axis=1))
    assert np.any(np.asarray(gradients[1]) != 0) == (variance == "learned_range")


@pytest.mark.parametrize("name", predictions.PREDICTIONS)
def test_the_bound_and_its_gradient_are_finite_from_the_first_t_to_the_last(name):
    _check_finite(
        "cosine 4000",
        name,
        "learned_range",
        np.append([0, 1, 2], np.linspace(3, 3999, 20).astype(int)),
    )


@pytest.mark.parametrize(
    ("table", "variance"),
    [("cosine 200", "fixed_small"), ("linear 25", "fixed_large"), ("cosine 200", "learned_range")],
)
def test_the_bound_and_its_gradient_are_finite_at_every_t(table, variance):
    _check_finite(table, "eps", variance, np.arange(int(table.split()[1])))


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_table_of_one_step_is_a_decoder_of_variance_beta(variance):
    beta = 0.04
    schedule = schedules.from_betas([beta])
    _, eps, guess, v = _data((3, 4))
    guess = 0.1 * guess
    x0 = 2.0 * np.random.default_rng(0).integers(100, 150, size=(3, 4)) / 255.0 - 1.0
    network = lambda x, t, cond: jnp.concatenate([guess, v], -1).astype(np.float32)
    loss = vlb(predictions.x0(), schedule, variance)
    found = jax.jit(lambda: loss(network, np.float32(x0), eps, schedule.level(np.zeros(3, int))))()
    probability = norm.cdf(x0 + 1 / 255, guess, beta**0.5) - norm.cdf(
        x0 - 1 / 255, guess, beta**0.5
    )
    np.testing.assert_allclose(found, -np.log2(probability).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_table_of_two_steps_is_the_papers(variance):
    betas = np.array([0.02, 0.5])
    bar = np.cumprod(1 - betas)
    schedule = schedules.from_betas(betas)
    rng = np.random.default_rng(0)
    x0, eps, v = (
        2.0 * rng.integers(100, 150, size=(2, 4)) / 255.0 - 1.0,
        rng.normal(size=(2, 4)),
        rng.uniform(-1, 1, (2, 4)),
    )
    guess = x0 + 0.1 * rng.normal(size=(2, 4))
    network = lambda x, t, cond: jnp.concatenate([guess, v], -1).astype(np.float32)
    loss = vlb(predictions.x0(), schedule, variance)
    found = jax.jit(
        lambda: loss(network, np.float32(x0), np.float32(eps), schedule.level(np.array([0, 1])))
    )()
    small = np.log(
        betas[1] * (1 - bar[0]) / (1 - bar[1])
    )  # beta-tilde of index 1, which stands for that of index 0
    for t in (0, 1):
        fraction = (v[t] + 1) / 2
        log_variance = {
            "fixed_small": small,
            "fixed_large": np.log(betas[1]) if t else small,
            "learned_range": fraction * np.log(betas[t]) + (1 - fraction) * small,
        }[variance]
        if t == 0:
            scale = np.exp(0.5 * log_variance)
            nats = -np.log(
                norm.cdf(x0[0] + 1 / 255, guess[0], scale)
                - norm.cdf(x0[0] - 1 / 255, guess[0], scale)
            )
        else:
            shift = np.sqrt(bar[0]) * betas[1] / (1 - bar[1]) * (guess[1] - x0[1])
            nats = 0.5 * (
                log_variance
                - small
                - 1
                + np.exp(small - log_variance)
                + shift**2 * np.exp(-log_variance)
            )
        np.testing.assert_allclose(found[t], np.mean(nats) / LN2, rtol=1e-4, err_msg=f"t = {t}")


def test_continuous_time_and_fixed_outputs_are_clear_errors(continuous):
    with pytest.raises(ValueError, match="table"):
        vlb(predictions.eps(), continuous)
    schedule = schedules.linear(NUM_STEPS)
    x0, eps, mean, _ = _data()
    for loss in (vlb(predictions.eps(), schedule), hybrid(predictions.eps(), schedule)):
        with pytest.raises(ValueError, match="learned variance"):
            jax.eval_shape(
                lambda loss=loss: loss(lambda x, t, cond: mean, x0, eps, schedule.level(T))
            )
    with pytest.raises(ValueError, match="fixed_small, fixed_large, learned_range.*'medium'"):
        vlb(predictions.eps(), schedule, "medium")
