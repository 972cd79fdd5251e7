"""The variational bound: its limit, its parts, its estimate, and the choice of steps by it.

The data are 8-bit values k of a normal distribution, P(k) ~ exp(-k^2 / (2 STD^2)): given x_t, x0 is
then a discrete Gaussian of known mean and variance, so that the exact denoiser and the exact error
of every level are closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from diffusion_jax.core import predictions, schedules
from diffusion_jax.core.grids import respaced, respaced_indices
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.likelihood import variational as likelihood
from diffusion_jax.likelihood.variational import best_steps, bound, bound_monte_carlo, prior_bits
from diffusion_jax.objectives.losses import vlb
from diffusion_jax.samplers import example_keys

STD = 0.2
BIN = 2 / 255
VALUES = BIN * (np.arange(256) - 127.5)
PROBABILITIES = np.exp(-(VALUES**2) / (2 * STD**2)) / np.exp(-(VALUES**2) / (2 * STD**2)).sum()
ENTROPY = -np.sum(PROBABILITIES * np.log2(PROBABILITIES))  # bits/dim
BATCH, DIM = 64, 128


def _data(batch=BATCH, dim=DIM, seed=0):
    """x0 [batch, dim] and its bits/dim, [batch]."""
    index = np.random.default_rng(seed).choice(256, size=(batch, dim), p=PROBABILITIES)
    return VALUES[index].astype(np.float32), -np.log2(PROBABILITIES[index]).mean(axis=1)


def _keys(batch=BATCH, seed=0):
    return example_keys(jax.random.key(seed), np.arange(batch))


def _posterior(x, level):
    """Mean and variance of q(x0 | x_t) for data N(0, STD^2)."""
    variance = 1 / (1 / STD**2 + (level.alpha / level.sigma) ** 2)
    return variance * level.alpha * x / level.sigma**2, variance


def _prediction(x0, x, level, aux=None):
    return Prediction(x0, (x - level.alpha * x0) / level.sigma, aux)


def _exact(x, level):
    """The exact denoiser of the 8-bit data.

    The mean of a discrete Gaussian of more than a bin's deviation is that of the Gaussian, up to
    exp(-2 pi^2)."""
    level = level.expand(x.ndim)
    mean, variance = _posterior(x, level)
    near = BIN * (jnp.round(mean / BIN + 0.5)[..., None] - 0.5 + jnp.arange(-8.0, 9.0))
    share = jax.nn.softmax(
        -((near - mean[..., None]) ** 2) / (2 * jnp.asarray(variance)[..., None]), axis=-1
    )
    return _prediction(jnp.where(variance > BIN**2, mean, jnp.sum(share * near, axis=-1)), x, level)


def _error(variance):
    """E (x0 - exact x0)^2, the mean of the discrete Gaussian's variance over where in a bin its
    mean may lie, by quadrature."""
    if variance > BIN**2:
        return variance
    mean = BIN * np.linspace(-0.5, 0.5, 400, endpoint=False)[:, None]
    k = BIN * np.arange(-12, 13)
    joint = np.exp(-((k - mean) ** 2) / (2 * variance))
    x0 = (joint * k).sum(axis=1, keepdims=True) / joint.sum(axis=1, keepdims=True)
    return np.sum(joint * (k - x0) ** 2) / np.sum(joint)


def _fine_table(num_steps):
    """alphas_cumprod evenly spread in log-SNR, from a tenth of a bin's width, where the data are
    resolved, to noise."""
    logsnr = np.linspace(2 * np.log(10 / BIN), -9, num_steps)
    alphas_cumprod = 1 / (1 + np.exp(-logsnr))
    return alphas_cumprod, schedules.from_betas(
        1 - alphas_cumprod / np.append(1, alphas_cumprod[:-1])
    )


def _expected_terms(alphas_cumprod, variance, error=None):
    """E L_{t-1} in bits/dim for t = 1 ... T - 1 (Kingma et al. 2021, eq. 13), and the ratio of the
    two variances for beta."""
    snr = alphas_cumprod / (1 - alphas_cumprod)
    error = np.array([_error(1 / (1 / STD**2 + one)) for one in snr]) if error is None else error
    of_mean = 0.5 * (snr[:-1] - snr[1:]) * error[1:]
    if variance == "fixed_small":
        return of_mean / np.log(2)
    ratio = (1 - alphas_cumprod[:-1]) / (1 - alphas_cumprod[1:])  # beta-tilde / beta
    return (of_mean * ratio + 0.5 * (ratio - 1 - np.log(ratio))) / np.log(2)


def _backwards(schedule):
    return schedule.level(np.arange(schedule.num_steps)[::-1])


def _standard_error(of_examples):
    return np.std(of_examples, ddof=1) / np.sqrt(len(of_examples))


# The limit


def test_the_entropy_is_that_of_the_normal_distribution_in_bins():
    assert abs(ENTROPY - (0.5 * np.log2(2 * np.pi * np.e * STD**2) - np.log2(BIN))) < 1e-4


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_with_the_exact_denoiser_the_bound_reaches_the_entropy_at_a_rate_of_one_over_t(variance):
    # closed form, in bits of 6.7195 at T = 25, 100, 400: fixed small 4.596, 0.822, 0.186; fixed
    # large 1.139, 0.291, 0.072
    excess = lambda num_steps: (
        np.sum(_expected_terms(_fine_table(num_steps)[0], variance)) - ENTROPY
    )
    x0, bits = _data(dim=64)
    measured, errors = [], []
    for num_steps in (25, 100, 400):
        grid = _backwards(_fine_table(num_steps)[1])
        total = jax.jit(lambda x0, grid=grid: bound(_exact, _keys(), x0, grid, variance).total)(x0)
        above = np.asarray(total, float) - bits  # the bound's excess over each example's own bits
        measured.append(above.mean())
        errors.append(_standard_error(above))
        assert abs(measured[-1] - excess(num_steps)) < 4 * errors[-1] + 1e-3
    assert np.all(np.array(measured) > 0)
    assert measured[-1] < 0.22
    assert errors[-1] < 0.02
    assert 3 < measured[1] / measured[2] < 6.5  # four times the steps
    rates = [np.log2(excess(n) / excess(2 * n)) for n in (400, 1600)]
    np.testing.assert_allclose(rates, 1, atol=0.1)
    assert abs(rates[1] - 1) < 0.03


def _exact_variance(alphas_cumprod, indices):
    """Of each kept index, ascending: the fraction, between the respaced log beta-tilde and log
    beta, of the exact variance.

    q(x_s | x_t) has the posterior's variance and that of its mean. Nichol & Dhariwal 2021, section
    3.1: it lies in between."""
    kept = alphas_cumprod[np.sort(indices)]
    prev = np.append(1, kept[:-1])
    betas = 1 - kept / prev
    tilde = betas * (1 - prev) / (1 - kept)
    exact = tilde + prev * (betas / (1 - kept)) ** 2 / (1 / STD**2 + kept / (1 - kept))
    small = np.append(tilde[1], tilde[1:])
    fraction = np.zeros(len(alphas_cumprod))
    fraction[np.sort(indices)] = (np.log(exact) - np.log(small)) / (np.log(betas) - np.log(small))
    return fraction


def _gaussian(fraction=None):
    """The exact denoiser of N(0, STD^2), with the fraction [T] of each index."""

    def denoiser(x, level):
        expanded = level.expand(x.ndim)
        aux = (
            None
            if fraction is None
            else jnp.broadcast_to(jnp.asarray(fraction, jnp.float32)[expanded.t], x.shape)
        )
        return _prediction(_posterior(x, expanded)[0], x, expanded, aux)

    return denoiser


@pytest.mark.parametrize(
    "spacing", ["linear 25 25", "linear 100 100", "linear 1000 ddim25", "cosine 1000 5,10,15"]
)
def test_with_the_exact_variance_too_the_bound_is_the_entropy_at_any_number_of_steps(spacing):
    # each reverse step is then exactly that of the forward process; bins are narrower than the
    # first index's noise
    kind, num_steps, spacing = spacing.split()
    alphas_cumprod = np.cumprod(1 - schedules.BETAS[kind](int(num_steps)))
    fraction = _exact_variance(alphas_cumprod, respaced_indices(int(num_steps), spacing))
    assert np.all((fraction >= 0) & (fraction <= 1))
    grid = respaced(schedules.SCHEDULES[kind](int(num_steps)), spacing)
    x0, bits = _data()
    run = jax.jit(
        lambda x0, fraction, variance: (
            bound(_gaussian(fraction), _keys(), x0, grid, variance).total
        ),
        static_argnums=2,
    )
    above = np.asarray(run(x0, fraction, "learned_range"), float) - bits
    assert abs(above.mean()) < 4 * _standard_error(above) + 0.002
    assert _standard_error(above) < 0.02
    for end in (0.0, 1.0) if num_steps == "25" else ():  # neither end of the range is exact
        above = np.asarray(run(x0, np.full_like(fraction, end), "learned_range"), float) - bits
        assert above.mean() > 4 * _standard_error(above)


# Its parts


def test_every_term_has_its_closed_form_as_expectation():
    num_steps, variance = 30, "fixed_large"  # fixed small: with the choice of steps, below
    alphas_cumprod = np.cumprod(1 - schedules.linear_betas(num_steps))
    x0, _ = _data()
    grid = _backwards(schedules.linear(num_steps))
    found = jax.jit(lambda x0: bound(_gaussian(), _keys(seed=1), x0, grid, variance))(x0)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    error = 1 / (1 / STD**2 + snr)
    for terms, expected in (
        (found.terms[:-1], _expected_terms(alphas_cumprod, variance, error)[::-1]),
        (found.x0_mse, error[::-1]),
        (found.eps_mse, (snr * error)[::-1]),
    ):
        standard_error = np.std(terms, axis=1, ddof=1) / np.sqrt(BATCH)
        assert (
            np.max(np.abs(np.mean(terms, axis=1) - expected) / (standard_error + 1e-5 * expected))
            < 4.5
        )
        assert np.all(standard_error < 0.05 * expected)


def test_the_total_is_the_sum_of_the_prior_and_the_terms():
    # of a chain that stops early, where much of the data is left at its noisiest level
    x0, _ = _data(5, 12)
    schedule = schedules.linear(50)
    grid = schedule.level(np.array([20, 13, 6, 1, 0]))
    found = jax.jit(lambda x0: bound(_gaussian(), _keys(5), x0, grid, "fixed_large"))(x0)
    assert [np.shape(a) for a in found] == [(5,), (5,), (5, 5), (5, 5), (5, 5)]
    np.testing.assert_allclose(
        found.total, np.float64(found.prior) + np.sum(found.terms, axis=0, dtype=float), rtol=1e-5
    )
    bar = np.cumprod(1 - schedules.linear_betas(50))[20]
    prior = 0.5 * (bar * np.float64(x0) ** 2 + (1 - bar) - 1 - np.log(1 - bar)) / np.log(2)
    assert prior.mean() > 0.01
    np.testing.assert_allclose(found.prior, prior.mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.9, 0.3, 0.01, 1e-4, 0.0])
def test_the_prior_term_is_the_gaussians_kl_also_where_it_is_tiny(alpha):
    x0, _ = _data(3, 50)
    expected = (
        0.5
        * np.mean(alpha**2 * np.float64(x0) ** 2 - alpha**2 - np.log1p(-(alpha**2)), axis=1)
        / np.log(2)
    )
    level = Level(99, jnp.float32(alpha), jnp.float32(np.sqrt(1 - alpha**2)))
    np.testing.assert_allclose(prior_bits(x0, level), expected, rtol=1e-3, atol=1e-7)
    assert np.all(np.asarray(prior_bits(x0, level)) >= -1e-7)


def _decoder_nats(x, mean, scale):
    log_p = np.log(
        np.diff(scipy.special.ndtr((np.stack([x - 1 / 255, x + 1 / 255]) - mean) / scale), axis=0)[
            0
        ]
    )
    low, high = (
        scipy.special.log_ndtr((x + 1 / 255 - mean) / scale),
        scipy.special.log_ndtr(-(x - 1 / 255 - mean) / scale),
    )
    return np.where(x < -0.999, low, np.where(x > 0.999, high, log_p))


@pytest.mark.parametrize(
    ("spacing", "variance"),
    [
        *itertools.product(["7", "1"], ["fixed_small", "fixed_large", "learned_range"]),
        ("2,3,4", "learned_range"),
    ],
)
def test_every_term_of_a_respaced_grid_is_that_of_the_rewritten_betas(
    monkeypatch, variance, spacing
):
    # Ho et al. 2020, eqs. 5 to 7 and 13, and Nichol & Dhariwal 2021, eq. 15, in float64
    num_steps = 30
    rng = np.random.default_rng(0)
    x0 = VALUES[rng.integers(256, size=(4, 3, 3, 2))]
    x0[0, 0, 0] = [-1, 1]
    noise = np.float32(rng.normal(size=x0.shape))
    monkeypatch.setattr(
        likelihood, "normal", lambda keys, shape: jnp.asarray(noise)
    )  # the same at every level
    # a network near enough to the truth for a decoder in float64 without care for its tails
    guess = lambda x, t: 0.02 * np.cos(9 * x + t)
    share = lambda x, t: 0.5 + 0.4 * np.sin(3 * x + t)
    truth = jnp.asarray(x0, jnp.float32)

    def denoiser(x, level):
        level = level.expand(x.ndim)
        wave = 0.02 * jnp.cos(9 * x + level.t)
        return _prediction(truth + wave, x, level, 0.5 + 0.4 * jnp.sin(3 * x + level.t))

    grid = respaced(schedules.linear(num_steps), spacing)
    found = jax.jit(lambda x0: bound(denoiser, _keys(4), x0, grid, variance))(np.float32(x0))

    indices = respaced_indices(num_steps, spacing)
    kept = np.cumprod(1 - schedules.linear_betas(num_steps))[indices]
    prev = np.append(1, kept[:-1])
    betas = 1 - kept / prev
    tilde = betas * (1 - prev) / (1 - kept)
    small = np.log(np.append(tilde[1:2], tilde[1:])) if len(kept) > 1 else np.log(betas)
    for i, t in enumerate(indices):
        x_t = np.sqrt(kept[i]) * x0 + np.sqrt(1 - kept[i]) * noise
        error = guess(x_t, t)
        fraction = share(x_t, t)
        log_variance = {
            "fixed_small": small[i],
            "fixed_large": np.log(betas[i]) if i else small[0],
            "learned_range": fraction * np.log(betas[i]) + (1 - fraction) * small[i],
        }[variance]
        shift = np.sqrt(prev[i]) * betas[i] / (1 - kept[i]) * error  # of the mean
        if i:
            nats = 0.5 * (
                log_variance
                - small[i]
                - 1
                + np.exp(small[i] - log_variance)
                + shift**2 * np.exp(-log_variance)
            )
        else:
            nats = -_decoder_nats(x0, x0 + shift, np.exp(0.5 * log_variance))
        row = len(indices) - 1 - i
        bits = np.broadcast_to(nats, x0.shape).mean(axis=(1, 2, 3)) / np.log(2)
        np.testing.assert_allclose(found.terms[row], bits, rtol=2e-3, atol=1e-4, err_msg=f"t = {t}")
        np.testing.assert_allclose(found.x0_mse[row], np.mean(error**2, axis=(1, 2, 3)), rtol=1e-3)
        of_eps = kept[i] / (1 - kept[i]) * np.mean(error**2, axis=(1, 2, 3))
        np.testing.assert_allclose(found.eps_mse[row], of_eps, rtol=2e-3, atol=1e-11)


def test_an_examples_bound_does_not_depend_on_its_batch():
    x0, _ = _data(4, 12)
    grid = respaced(schedules.linear(50), "5")

    @jax.jit
    def both(keys, x0):
        estimate = bound_monte_carlo(_gaussian(), keys, x0, grid, "fixed_small", 3)
        return bound(_gaussian(), keys, x0, grid, "fixed_small").total, estimate

    order = np.array([2, 3, 3, 3])
    for whole, other in zip(both(_keys(4), x0), both(_keys(4)[order], x0[order]), strict=True):
        np.testing.assert_allclose(other, whole[order], rtol=1e-5)
        assert len(np.unique(whole)) == 4


# Its estimate


def test_the_monte_carlo_bound_agrees_with_the_sum_within_its_standard_error():
    x0, _ = _data(512, 8)
    grid = respaced(schedules.linear(100), "12")
    exact = jax.jit(lambda x0: bound(_gaussian(), _keys(512, 1), x0, grid, "fixed_large").total)(x0)
    spread = []
    for samples in (1, 64):
        run = lambda x0, n=samples: bound_monte_carlo(
            _gaussian(), _keys(512, 2), x0, grid, "fixed_large", n
        )
        estimate = np.asarray(jax.jit(run)(x0), float)
        difference = estimate - np.asarray(exact)
        assert abs(difference.mean()) < 4 * _standard_error(difference)
        spread.append(estimate.var())
    assert _standard_error(difference) < 0.02 * np.mean(exact)
    assert (
        30 < spread[0] / spread[1] < 70
    )  # draws are independent: 64 of them, but data differ, too


# Its minimum


DIRECTIONS = {
    "constant": jnp.ones_like,
    "linear": lambda x: 3.0 * x,
    "wavy": lambda x: jnp.sin(9.0 * x),
}


def _slopes(schedule, network, variance, batch=2000, dim=16):
    """(wrong, direction) -> d L_vlb / d delta of every example, [batch], the network's output moved
    by wrong + delta."""
    x0, _ = _data(batch, dim, seed=3)
    eps = np.random.default_rng(4).normal(size=x0.shape).astype(np.float32)
    t = schedule.level(np.arange(batch) % schedule.num_steps)
    loss = vlb(predictions.x0(), schedule, variance, scaled=True)

    @jax.jit
    def slope(wrong, direction):
        moved = lambda delta: loss(
            lambda x, t_in, cond: network(x, t, wrong + delta, direction), x0, eps, t
        )
        return jax.jvp(moved, (0.0,), (1.0,))[1]

    return lambda wrong, direction=0: np.asarray(slope(wrong, direction), float)


def test_l_vlb_is_stationary_at_the_exact_denoiser():
    # L_0 among it: at a tenth of a bin's noise it is 0 whatever a little move does
    _, schedule = _fine_table(50)

    def network(x, t, delta, direction):
        moves = jnp.stack([move(x) for move in DIRECTIONS.values()])
        return _exact(x, t).x0 + delta * BIN * moves[direction]

    slopes_at = _slopes(schedule, network, "fixed_large")
    for direction in range(len(DIRECTIONS)):
        slopes = slopes_at(0.0, direction)
        assert abs(slopes.mean()) < 4 * _standard_error(slopes)
        for wrong in (-0.2, 0.2):  # in bins; the slope leads back
            slopes = slopes_at(wrong, direction)
            assert np.sign(wrong) * slopes.mean() > 4 * _standard_error(slopes)


def test_l_vlb_is_stationary_at_the_exact_variance():
    fraction = _exact_variance(np.cumprod(1 - schedules.linear_betas(40)), np.arange(40))

    def network(x, t, delta, direction):
        expanded = t.expand(x.ndim)
        share = jnp.asarray(fraction, jnp.float32)[expanded.t] + delta
        return jnp.concatenate(
            [_posterior(x, expanded)[0], jnp.broadcast_to(2 * share - 1, x.shape)], axis=-1
        )

    slopes_at = _slopes(schedules.linear(40), network, "learned_range")
    slopes = slopes_at(0.0)
    assert abs(slopes.mean()) < 4 * _standard_error(slopes)
    for wrong in (-0.2, 0.2):
        slopes = slopes_at(wrong)
        assert np.sign(wrong) * slopes.mean() > 4 * _standard_error(slopes)


# The choice of steps


def _cost(path, snr, error):
    return sum(0.5 * (snr[s] - snr[t]) * error[t] for s, t in itertools.pairwise(path))


@pytest.mark.parametrize("kind", ["monotone", "any"])
def test_the_best_steps_are_those_of_all_subsets(kind):
    level = schedules.cosine(8).level(np.arange(8))
    snr = (np.float64(level.alpha) / np.float64(level.sigma)) ** 2
    costs = {}
    for seed in range(5):
        error = np.random.default_rng(seed).uniform(0.01, 1.0, 8)
        error = np.sort(error) if kind == "monotone" else error
        for budget in range(2, 9):
            chosen = best_steps(error, level, budget)
            assert len(chosen) == budget
            assert chosen[0] == 0
            assert chosen[-1] == 7
            assert np.all(np.diff(chosen) > 0)
            all_costs = [
                _cost((0, *inner, 7), snr, error)
                for inner in itertools.combinations(range(1, 7), budget - 2)
            ]
            costs[seed, budget] = _cost(chosen, snr, error)
            np.testing.assert_allclose(costs[seed, budget], min(all_costs), rtol=1e-9)
        if kind == "monotone":  # more noise, more error: another step can only help
            assert np.all(np.diff([costs[seed, budget] for budget in range(2, 9)]) < 0)


def test_the_best_steps_beat_even_ones_and_the_bound_costs_what_they_cost():
    num_steps, budget = 100, 10
    schedule = schedules.linear(num_steps)
    alphas_cumprod = np.cumprod(1 - schedules.linear_betas(num_steps))
    snr = alphas_cumprod / (1 - alphas_cumprod)
    error = 1 / (1 / STD**2 + snr)
    chosen = best_steps(error, schedule.level(np.arange(num_steps)), budget)
    even = respaced_indices(num_steps, str(budget))
    assert _cost(chosen, snr, error) < 0.5 * _cost(even, snr, error)
    # the bound itself agrees, on either grid, but for L_0 and the prior, which any choice has
    x0, _ = _data()
    run = jax.jit(lambda x0, grid: bound(_gaussian(), _keys(), x0, grid, "fixed_small").terms)
    for indices in (chosen, even):
        terms = run(x0, schedule.level(np.asarray(indices)[::-1]))
        chain = np.sum(terms[:-1], axis=0, dtype=float)
        expected = _cost(indices, snr, error) / np.log(2)
        assert abs(chain.mean() - expected) < 4 * _standard_error(chain) + 1e-4 * expected


def test_the_steps_of_a_whole_table_and_of_two():
    level = schedules.linear(30).level(np.arange(30))
    error = np.linspace(0.1, 1, 30)
    np.testing.assert_array_equal(best_steps(error, level, 30), np.arange(30))
    np.testing.assert_array_equal(best_steps(error, level, 2), [0, 29])


@pytest.mark.parametrize("budget", [0, 1, 31])
def test_an_impossible_budget_is_a_clear_error(budget):
    with pytest.raises(ValueError, match=f"{budget} steps .* between 2 and .* 30"):
        best_steps(np.ones(30), schedules.linear(30).level(np.arange(30)), budget)
