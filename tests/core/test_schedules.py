import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import schedules
from diffusion_jax.core.process import q_posterior
from diffusion_jax.core.schedules import BETAS, SCHEDULES, from_betas, posterior_tables, previous
from diffusion_jax.core.types import CLEAN, Level

PEERS = ["linear_100", "linear_1000", "linear_4000", "cosine_50", "cosine_1000", "cosine_4000"]


def _peer(reference, name):
    kind, num_steps = name.split("_")
    tables = {
        key.split("/")[1]: a
        for key, a in reference("schedules.npz").items()
        if key.startswith(name + "/")
    }
    return kind, int(num_steps), tables.pop("index"), tables


@pytest.mark.parametrize("name", PEERS)
def test_betas_and_tables_are_the_peers(reference, name):
    kind, num_steps, index, expected = _peer(reference, name)
    betas = BETAS[kind](num_steps)
    tables = {"betas": betas, **posterior_tables(betas)}
    assert tables.keys() == expected.keys()
    for key, table in tables.items():
        assert table.dtype == np.float64
        assert table.shape == (num_steps,)
        np.testing.assert_allclose(table[index], expected[key], rtol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", PEERS)
def test_levels_are_the_peers(reference, x64, name):
    kind, num_steps, index, expected = _peer(reference, name)
    level = SCHEDULES[kind](num_steps).level(index)
    np.testing.assert_array_equal(level.t, index)
    np.testing.assert_allclose(level.alpha**2, expected["alphas_cumprod"], rtol=1e-12)
    np.testing.assert_allclose(level.sigma**2, 1 - expected["alphas_cumprod"], rtol=1e-12)


def _posterior_of_neighbours(schedule, t):
    """The tables' entries at t > 0; index 0 goes to clean data, which is no index."""
    one, zero = jnp.ones(t.shape), jnp.zeros(t.shape)
    s, t = schedule.level(t - 1), schedule.level(t)
    of_x0, variance = q_posterior(one, zero, s, t)
    of_x_t, _ = q_posterior(zero, one, s, t)
    return {
        "posterior_mean_coef1": of_x0,
        "posterior_mean_coef2": of_x_t,
        "posterior_variance": variance,
    }


@pytest.mark.parametrize("name", PEERS)
def test_posterior_between_neighbours_is_the_peers(reference, x64, name):
    kind, num_steps, index, expected = _peer(reference, name)
    # 1 - alphas_cumprod, 4e-5 at T = 4000, has lost five of sixteen digits already in the peer's
    # table
    for key, value in _posterior_of_neighbours(SCHEDULES[kind](num_steps), index[1:]).items():
        np.testing.assert_allclose(value, expected[key][1:], rtol=1e-11, err_msg=key)


@pytest.mark.parametrize("name", PEERS)
def test_float32_keeps_the_posterior(reference, name):
    kind, num_steps, index, expected = _peer(reference, name)
    for key, value in _posterior_of_neighbours(SCHEDULES[kind](num_steps), index[1:]).items():
        assert value.dtype == jnp.float32
        # the difference of two levels' log-SNRs would lose 2.3e-4 at linear_4000
        np.testing.assert_allclose(value, expected[key][1:], rtol=2e-4, err_msg=key)


@pytest.mark.parametrize("num_steps", [1, 10, 19])
def test_linear_of_too_few_steps_is_an_error(num_steps):
    with pytest.raises(ValueError, match="at least 20 steps"):
        schedules.linear(num_steps)


def test_linear_of_twenty_steps_is_the_shortest():
    np.testing.assert_allclose(schedules.linear_betas(20), np.linspace(0.005, 1.0, 20))


def test_linear_takes_other_ends():
    np.testing.assert_allclose(schedules.linear_betas(10, 1e-4, 5e-3), np.linspace(0.01, 0.5, 10))
    with pytest.raises(ValueError, match="at least 70 steps"):
        schedules.linear_betas(60, 1e-4, 0.07)


def test_exactly_one_cosine_beta_is_clipped():
    betas = schedules.cosine_betas(1000)
    np.testing.assert_array_equal(np.flatnonzero(betas >= 0.999), [999])
    assert betas[999] == 0.999


def test_cosine_follows_its_formula_up_to_the_clip():
    u = np.arange(1, 50) / 50  # all but the last, which is clipped
    f = lambda u: np.cos((u + 0.02) / 1.02 * np.pi / 2) ** 2
    np.testing.assert_allclose(
        posterior_tables(schedules.cosine_betas(50, s=0.02))["alphas_cumprod"][:-1], f(u) / f(0)
    )


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1.0), (0, 3, 0.7), (-3, 3, 0.5)])
def test_sigmoid_falls_from_one_to_zero_by_its_formula(start, end, tau):
    alphas_cumprod = posterior_tables(schedules.sigmoid_betas(100, start, end, tau))[
        "alphas_cumprod"
    ]
    assert np.all(np.diff(alphas_cumprod) < 0)
    assert 1 > alphas_cumprod[0] > alphas_cumprod[-1] > 0
    # Jabri et al.'s sigmoid, by the identity sigmoid(a) = (1 + tanh(a / 2)) / 2
    tanh = lambda u: np.tanh((start + u * (end - start)) / tau / 2)
    u = np.arange(1, 100) / 100
    np.testing.assert_allclose(
        alphas_cumprod[:-1], (tanh(1) - tanh(u)) / (tanh(1) - tanh(0)), rtol=1e-9
    )


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("num_steps", [0, -5])
def test_no_steps_are_an_error(name, num_steps):
    with pytest.raises(ValueError, match="at least 1"):
        BETAS[name](num_steps)


@pytest.mark.parametrize(
    "betas", [[], [[0.1, 0.2]], 0.1, [0.1, 0.0], [0.1, -0.1], [0.1, 1.1], [0.1, float("nan")]]
)
def test_impossible_betas_are_an_error(betas):
    with pytest.raises(ValueError, match="beta"):
        from_betas(betas)


def test_from_betas_multiplies_what_the_steps_keep(x64):
    level = from_betas([0.1, 0.2, 0.3]).level(np.arange(3))
    np.testing.assert_allclose(level.alpha**2, [0.9, 0.72, 0.504], rtol=1e-14)
    np.testing.assert_allclose(level.sigma**2, [0.1, 0.28, 0.496], rtol=1e-14)


@pytest.mark.parametrize(
    "t",
    [-1, 1000, -0.5, 999.1, [0, 1000], np.array([-1, 5]), jnp.array([0, 1000]), float("nan")],
    ids=repr,
)
def test_t_outside_the_table_is_an_error(t):
    # an out-of-range gather on the device would clamp without a word
    with pytest.raises(ValueError, match="from 0 to 999"):
        schedules.linear().level(t)


@pytest.mark.parametrize("name", BETAS)
def test_ends_are_those_of_the_table(name):
    schedule = SCHEDULES[name](num_steps=50)
    assert (schedule.t_min, schedule.t_max, schedule.num_steps) == (0, 49, 50)
    assert SCHEDULES[name]().num_steps == 1000


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("num_steps", [50, 1000])
def test_inverse_undoes_logsnr(x64, name, num_steps):
    schedule = SCHEDULES[name](num_steps=num_steps)
    t = np.arange(num_steps)
    np.testing.assert_allclose(schedule.inverse(schedule.level(t).logsnr), t, atol=1e-9)


@pytest.mark.parametrize("name", BETAS)
def test_inverse_falls_between_indices_and_stops_at_the_ends(name):
    schedule = SCHEDULES[name](num_steps=50)
    logsnr = schedule.level(np.arange(50)).logsnr
    np.testing.assert_allclose(
        schedule.inverse((logsnr[1:] + logsnr[:-1]) / 2), np.arange(49) + 0.5, atol=1e-3
    )
    np.testing.assert_allclose(schedule.inverse(jnp.array([100.0, -100.0])), [0, 49])


def test_inverse_reaches_a_last_level_of_pure_noise(x64):
    # beta 1, as in linear(num_steps=20): the log-SNR of the last index is -inf
    schedule = from_betas([0.1, 0.2, 1.0])
    np.testing.assert_allclose(
        schedule.inverse(schedule.level(np.arange(3)).logsnr), [0, 1, 2], atol=1e-9
    )
    assert np.all(np.isfinite(schedule.inverse(np.array([-50.0, 0.5]))))


@pytest.mark.parametrize("name", BETAS)
def test_levels_get_noisier_and_preserve_variance(x64, name):
    level = SCHEDULES[name](num_steps=100).level(np.arange(100))
    assert np.all(np.diff(level.logsnr) < 0)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-14)


@pytest.mark.parametrize("name", BETAS)
def test_jitted_level_is_the_eager_one_in_any_shape(name):
    schedule = SCHEDULES[name](num_steps=50)
    for t in (np.int32(7), np.array([0, 49, 7]), np.array([[1, 2], [3, 4]])):
        eager, jitted = schedule.level(t), jax.jit(schedule.level)(t)
        for a, b in zip(eager, jitted, strict=True):
            assert a.shape == b.shape == t.shape
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", BETAS)
def test_whole_floats_are_the_tables_entries(x64, name):
    schedule, t = SCHEDULES[name](num_steps=50), np.array([0.0, 3.0, 49.0])
    level = jax.jit(schedule.level)(t)
    assert level.t.dtype == np.float64
    for a, b in zip(level, schedule.level(t.astype(int)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert schedule.level(3.0).t.dtype == np.float64


@pytest.mark.parametrize("name", BETAS)
def test_between_indices_the_logsnr_is_linear(x64, name):
    schedule, bar = SCHEDULES[name](num_steps=50), np.cumprod(1 - BETAS[name](50))
    logsnr = np.log(bar / (1 - bar))
    for fraction in (0.5, 0.125):
        t = np.arange(49) + fraction
        expected = (1 - fraction) * logsnr[:-1] + fraction * logsnr[1:]
        for level in (schedule.level(t), jax.jit(schedule.level)(t)):
            np.testing.assert_array_equal(level.t, t)
            np.testing.assert_allclose(level.alpha**2, 1 / (1 + np.exp(-expected)), rtol=1e-9)
            np.testing.assert_allclose(level.sigma**2, 1 / (1 + np.exp(expected)), rtol=1e-9)


def test_a_traced_t_outside_the_table_is_the_nearer_end():
    schedule = schedules.cosine(50)
    for t, end in ((-2.5, 0), (70.5, 49)):
        np.testing.assert_array_equal(jax.jit(schedule.level)(t), schedule.level(float(end)))


def test_between_an_index_and_pure_noise_the_level_is_finite():
    # beta 1: the table's log-SNR ends at -inf
    level = from_betas([0.1, 0.2, 1.0]).level(np.array([1.0, 1.0 + 1e-4, 1.5, 2.0]))
    assert np.all(np.isfinite(np.asarray(level)))
    assert np.all(np.diff(level.alpha) <= 0)
    assert level.alpha[-1] == 0.0


def test_the_neighbour_of_a_fractional_level_is_one_index_cleaner(x64):
    schedule = schedules.cosine(50)
    before = previous(schedule, schedule.level(np.array([0.0, 0.4, 1.0, 7.25])))
    np.testing.assert_allclose(before.t, [CLEAN.t, 0, 0, 6.25])
    np.testing.assert_allclose(
        before.alpha[1:], schedule.level(np.array([0.0, 0.0, 6.25])).alpha, rtol=1e-12
    )
    assert (before.alpha[0], before.sigma[0]) == (1.0, 0.0)


def test_the_neighbour_of_a_whole_level_is_the_index_before():
    before = previous(schedules.cosine(50), schedules.cosine(50).level(np.arange(50)))
    assert before.t.dtype == np.int32
    np.testing.assert_array_equal(before.t, np.arange(-1, 49))
    with pytest.raises(ValueError, match="only a table's"):
        previous(schedules.vp(), schedules.vp().level(0.5))


# In continuous time


CONTINUOUS = [name for name in SCHEDULES if name not in BETAS]


def _integral(t):
    """Of the VP SDE's beta(t) = 0.1 + 19.9 t from 0, by Simpson's rule, which is exact for it."""
    return t / 6 * (0.1 + 4 * (0.1 + 19.9 * t / 2) + (0.1 + 19.9 * t))


def _preserving(logsnr):
    return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def _cosine_logsnr(t, shift=0.0):
    """As in Hoogeboom et al. 2023's listing, with the ends where they are told to be."""
    ends = np.arctan(np.exp(-0.5 * (15.0 - shift))), np.arctan(np.exp(-0.5 * (-15.0 - shift)))
    return -2 * np.log(np.tan(ends[0] + t * (ends[1] - ends[0]))) + shift


# What the papers write; a new schedule states its own.
MARGINALS = {
    "vp": lambda t: (np.exp(-_integral(t) / 2), np.sqrt(1 - np.exp(-_integral(t)))),
    "sub_vp": lambda t: (np.exp(-_integral(t) / 2), 1 - np.exp(-_integral(t))),
    "ve": lambda t: (np.ones_like(t), 0.01 * 5000.0**t),
    "edm": lambda t: (np.ones_like(t), t),
    "rectified_flow": lambda t: (1 - t, t),
    "linear_logsnr": lambda t: _preserving(15 - 30 * t),
    "cosine_logsnr": lambda t: _preserving(_cosine_logsnr(t)),
}
# dx = f x dt + g dw: name -> t -> (f, g^2)
SDES = {
    "vp": lambda t: (-(0.1 + 19.9 * t) / 2, 0.1 + 19.9 * t),
    "sub_vp": lambda t: (-(0.1 + 19.9 * t) / 2, (0.1 + 19.9 * t) * (1 - np.exp(-2 * _integral(t)))),
    "ve": lambda t: (0 * t, (0.01 * 5000.0**t) ** 2 * 2 * np.log(5000)),
    "edm": lambda t: (0 * t, 2 * t),
    "rectified_flow": lambda t: (-1 / (1 - t), 2 * t / (1 - t)),
}


def _times(schedule, num=41):
    return np.linspace(schedule.t_min, schedule.t_max, num)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_levels_are_the_papers(name):
    schedule = SCHEDULES[name]()
    t = _times(schedule)
    for double, rtol in ((True, 1e-10), (False, 2e-5)):
        with jax.enable_x64(double):
            level = schedule.level(t if double else t.astype(np.float32))
            assert {a.dtype for a in level} == {np.dtype(np.float64 if double else np.float32)}
            np.testing.assert_array_equal(level.t, t if double else t.astype(np.float32))
            for found, expected in zip(
                level[1:], MARGINALS[name](np.asarray(level.t, np.float64)), strict=True
            ):
                np.testing.assert_allclose(found, expected, rtol=rtol)


@pytest.mark.parametrize("name", SDES)
def test_continuous_levels_solve_the_papers_sde(x64, name):
    # of its marginal: d log alpha / dt = f and d sigma^2 / dt = 2 f sigma^2 + g^2 (Särkkä & Solin
    # 2019, eqs. 6.2)
    schedule, h = SCHEDULES[name](), 1e-6
    t = _times(schedule)[1:-1]
    before, level, after = (schedule.level(t + step) for step in (-h, 0.0, h))
    f, g2 = SDES[name](t)
    np.testing.assert_allclose(
        (np.log(after.alpha) - np.log(before.alpha)) / (2 * h), f, rtol=1e-6, atol=1e-9
    )
    np.testing.assert_allclose(
        (after.sigma**2 - before.sigma**2) / (2 * h), 2 * f * level.sigma**2 + g2, rtol=1e-5
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_inverse_undoes_logsnr_at_any_t(name):
    schedule = SCHEDULES[name]()
    t = np.append(
        _times(schedule),
        schedule.t_min + (schedule.t_max - schedule.t_min) * np.geomspace(1e-4, 1e-2, 9),
    )
    for double in (True, False):
        with jax.enable_x64(double):
            found = schedule.inverse(schedule.level(t).logsnr)
            np.testing.assert_allclose(
                found, t, rtol=1e-9 if double else 1e-4, atol=1e-10 if double else 2e-6
            )


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_levels_get_noisier_in_any_shape_jitted_or_not(name):
    schedule = SCHEDULES[name]()
    assert schedule.num_steps is None
    assert np.all(np.diff(schedule.level(_times(schedule)).logsnr) < 0)
    for t in (
        0.5,
        np.float32(0.25),
        np.array([0.25, 0.5]),
        np.array([[0.25], [0.5]]),
        np.array(1),
        1,
    ):
        eager, jitted = schedule.level(t), jax.jit(schedule.level)(t)
        for a, b in zip(eager, jitted, strict=True):
            assert a.shape == b.shape == np.shape(t)
            assert a.dtype == b.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_continuous_schedules_end_where_they_say(x64):
    for name in ("linear_logsnr", "cosine_logsnr"):
        schedule = SCHEDULES[name](-9.0, 7.0)
        np.testing.assert_allclose(schedule.level(np.array([0.0, 1.0])).logsnr, [7, -9], rtol=1e-12)
        assert (schedule.t_min, schedule.t_max) == (0, 1)
    np.testing.assert_allclose(
        schedules.ve(0.02, 30.0).level(np.array([0.0, 1.0])).sigma, [0.02, 30], rtol=1e-12
    )
    assert schedules.edm(0.1, 7.0)[2:4] == (0.1, 7.0)
    assert (
        schedules.vp(t_min=0.01, t_max=0.9)[2:4]
        == schedules.sub_vp(t_min=0.01, t_max=0.9)[2:4]
        == (0.01, 0.9)
    )


def test_float32_keeps_the_ends_of_the_cosine():
    # tan near pi/2 would lose 6e-4 of the log-SNR
    np.testing.assert_allclose(
        schedules.cosine_logsnr().level(np.array([0.0, 1.0])).logsnr, [15, -15], rtol=2e-6
    )


def test_other_betas_and_shifts_enter_the_formulas(x64):
    t = np.array([0.2, 0.7])
    for make, power in ((schedules.vp, 0.5), (schedules.sub_vp, 1.0)):
        schedule = make(beta_min=0.3, beta_max=4.0)
        kept = np.exp(-0.3 * t - 3.7 * t**2 / 2)
        np.testing.assert_allclose(schedule.level(t).sigma, (1 - kept) ** power, rtol=1e-12)
        np.testing.assert_allclose(schedule.inverse(schedule.level(t).logsnr), t, rtol=1e-12)
    level = schedules.cosine_logsnr(shift=-1.5).level(t)
    np.testing.assert_allclose(level.logsnr, _cosine_logsnr(t, -1.5), rtol=1e-9)
    # far from the ends a shift is a shift
    wide = [schedules.cosine_logsnr(-60.0, 60.0, shift).level(t).logsnr for shift in (0.0, -1.5)]
    np.testing.assert_allclose(wide[1] - wide[0], -1.5, rtol=1e-9)
    np.testing.assert_allclose(wide[0], -2 * np.log(np.tan(np.pi * t / 2)), rtol=1e-9)


def test_a_shifted_vp_has_the_others_logsnr_and_the_shift(x64):
    """2 log(64 / 256): a mean over 4 x 4 pixels has the unshifted log-SNR."""
    shift, t = 2 * np.log(64 / 256), np.linspace(0.001, 1, 30)
    plain, moved = schedules.vp(), schedules.vp(shift=shift)
    kept = np.exp(-_integral(t))
    alpha, sigma = _preserving(np.log(kept / (1 - kept)) + shift)
    np.testing.assert_allclose(moved.level(t).alpha, alpha, rtol=1e-10)
    np.testing.assert_allclose(moved.level(t).sigma, sigma, rtol=1e-10)
    np.testing.assert_allclose(moved.inverse(moved.level(t).logsnr), t, rtol=1e-10)
    means = moved.level(t).logsnr + 2 * np.log(4)  # a quarter of the noise's deviation
    np.testing.assert_allclose(means, plain.level(t).logsnr, atol=1e-9)


@pytest.mark.parametrize(("shift", "noisy"), [(-5.5, -1.4), (-1.4, -5.5), (0.0, 2.0)])
def test_the_interpolated_cosine_is_the_papers(x64, shift, noisy):
    schedule = schedules.cosine_logsnr(shift=shift, noisy_shift=noisy)
    t = np.linspace(0, 1, 101)
    expected = (1 - t) * _cosine_logsnr(t, shift) + t * _cosine_logsnr(t, noisy)
    level = schedule.level(t)
    np.testing.assert_allclose(level.logsnr, expected, rtol=1e-9, atol=1e-9)
    assert np.all(np.diff(level.logsnr) < 0)
    np.testing.assert_allclose(schedule.inverse(expected), t, atol=1e-12)
    assert schedules.cosine_logsnr(shift=shift, noisy_shift=shift).level(0.3) == (
        schedules.cosine_logsnr(shift=shift).level(0.3)
    )


def test_the_inverse_of_the_interpolated_cosine_in_float32():
    schedule, t = schedules.cosine_logsnr(shift=-4.0, noisy_shift=-1.0), np.linspace(0, 1, 31)
    np.testing.assert_allclose(schedule.inverse(schedule.level(t).logsnr), t, atol=2e-6)


def test_rectified_flow_may_end_in_pure_noise():
    schedule = schedules.rectified_flow(t_max=1.0)
    level = schedule.level(1.0)
    assert (level.alpha, level.sigma, level.logsnr) == (0.0, 1.0, -np.inf)
    assert schedule.inverse(-np.inf) == 1.0


def test_any_logsnr_makes_a_schedule(x64):
    schedule = schedules.from_logsnr(
        lambda t: 3.0 - t**2, lambda logsnr: jnp.sqrt(3.0 - logsnr), 0.0, 2.0
    )
    t = np.linspace(0, 2, 5)
    level = schedule.level(t)
    np.testing.assert_allclose(level.logsnr, 3 - t**2, rtol=1e-12)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-12)
    np.testing.assert_allclose(schedule.inverse(level.logsnr), t, atol=1e-7)
    assert schedule[2:] == (0.0, 2.0, None)


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        (schedules.vp, {"t_min": 0.0}),
        (schedules.vp, {"beta_min": 3.0, "beta_max": 2.0}),
        (schedules.vp, {"beta_min": 0.0, "beta_max": 0.0}),
        (schedules.sub_vp, {"t_min": 0.5, "t_max": 0.5}),
        (schedules.ve, {"sigma_min": 0.0}),
        (schedules.edm, {"sigma_min": 3.0, "sigma_max": 2.0}),
        (schedules.rectified_flow, {"t_max": 1.01}),
        (schedules.rectified_flow, {"t_min": 0.0}),
        (schedules.linear_logsnr, {"logsnr_min": 15.0}),
        (schedules.cosine_logsnr, {"logsnr_max": float("nan")}),
    ],
)
def test_impossible_settings_of_continuous_schedules_are_errors(make, settings):
    with pytest.raises(ValueError, match="rise|fall|at most 1"):
        make(**settings)


def test_logsnr_is_the_log_of_the_ratio_of_powers():
    np.testing.assert_allclose(Level(0, 0.6, 0.8).logsnr, np.log(0.36 / 0.64), rtol=1e-6)
    assert Level(0, 1.0, 0.0).logsnr == np.inf


def test_expand_appends_axes_and_leaves_scalars():
    level = Level(np.arange(3), np.ones(3), np.zeros(3)).expand(4)
    assert {a.shape for a in level} == {(3, 1, 1, 1)}
    assert {a.shape for a in Level(0, 1.0, 0.0).expand(4)} == {()}
