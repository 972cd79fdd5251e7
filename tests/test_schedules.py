import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import schedules
from diffusion_jax.process import q_posterior
from diffusion_jax.schedules import BETAS, SCHEDULES, from_betas, posterior_tables
from diffusion_jax.types import Level

PEERS = ["linear_100", "linear_1000", "linear_4000", "cosine_50", "cosine_1000", "cosine_4000"]


def _peer(reference, name):
    kind, num_steps = name.split("_")
    tables = {key.split("/")[1]: a for key, a in reference("schedules.npz").items() if key.startswith(name + "/")}
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
    return {"posterior_mean_coef1": of_x0, "posterior_mean_coef2": of_x_t, "posterior_variance": variance}


@pytest.mark.parametrize("name", PEERS)
def test_posterior_between_neighbours_is_the_peers(reference, x64, name):
    kind, num_steps, index, expected = _peer(reference, name)
    # 1 - alphas_cumprod, 4e-5 at T = 4000, has lost five of sixteen digits already in the peer's table
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
    np.testing.assert_allclose(posterior_tables(schedules.cosine_betas(50, s=0.02))["alphas_cumprod"][:-1], f(u) / f(0))


@pytest.mark.parametrize(("start", "end", "tau"), [(-3, 3, 1.0), (0, 3, 0.7), (-3, 3, 0.5)])
def test_sigmoid_falls_from_one_to_zero_by_its_formula(start, end, tau):
    alphas_cumprod = posterior_tables(schedules.sigmoid_betas(100, start, end, tau))["alphas_cumprod"]
    assert np.all(np.diff(alphas_cumprod) < 0)
    assert 1 > alphas_cumprod[0] > alphas_cumprod[-1] > 0
    # Jabri et al.'s sigmoid, by the identity sigmoid(a) = (1 + tanh(a / 2)) / 2
    tanh = lambda u: np.tanh((start + u * (end - start)) / tau / 2)
    u = np.arange(1, 100) / 100
    np.testing.assert_allclose(alphas_cumprod[:-1], (tanh(1) - tanh(u)) / (tanh(1) - tanh(0)), rtol=1e-9)


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("num_steps", [0, -5])
def test_no_steps_are_an_error(name, num_steps):
    with pytest.raises(ValueError, match="at least 1"):
        BETAS[name](num_steps)


@pytest.mark.parametrize("betas", [[], [[0.1, 0.2]], 0.1, [0.1, 0.0], [0.1, -0.1], [0.1, 1.1], [0.1, float("nan")]])
def test_impossible_betas_are_an_error(betas):
    with pytest.raises(ValueError, match="beta"):
        from_betas(betas)


def test_from_betas_multiplies_what_the_steps_keep(x64):
    level = from_betas([0.1, 0.2, 0.3]).level(np.arange(3))
    np.testing.assert_allclose(level.alpha**2, [0.9, 0.72, 0.504], rtol=1e-14)
    np.testing.assert_allclose(level.sigma**2, [0.1, 0.28, 0.496], rtol=1e-14)


@pytest.mark.parametrize("t", [-1, 1000, 3.5, [0, 1000], np.array([-1, 5]), jnp.array([0, 1000]), float("nan")], ids=repr)
def test_t_outside_the_table_is_an_error(t):
    # an out-of-range gather on the device would clamp without a word
    with pytest.raises(ValueError, match="from 0 to 999"):
        schedules.linear().level(t)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_are_those_of_the_table(name):
    schedule = SCHEDULES[name](num_steps=50)
    assert (schedule.t_min, schedule.t_max, schedule.num_steps) == (0, 49, 50)
    assert SCHEDULES[name]().num_steps == 1000


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_steps", [50, 1000])
def test_inverse_undoes_logsnr(x64, name, num_steps):
    schedule = SCHEDULES[name](num_steps=num_steps)
    t = np.arange(num_steps)
    np.testing.assert_allclose(schedule.inverse(schedule.level(t).logsnr), t, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_inverse_falls_between_indices_and_stops_at_the_ends(name):
    schedule = SCHEDULES[name](num_steps=50)
    logsnr = schedule.level(np.arange(50)).logsnr
    np.testing.assert_allclose(schedule.inverse((logsnr[1:] + logsnr[:-1]) / 2), np.arange(49) + 0.5, atol=1e-3)
    np.testing.assert_allclose(schedule.inverse(jnp.array([100.0, -100.0])), [0, 49])


def test_inverse_reaches_a_last_level_of_pure_noise(x64):
    # beta 1, as in linear(num_steps=20): the log-SNR of the last index is -inf
    schedule = from_betas([0.1, 0.2, 1.0])
    np.testing.assert_allclose(schedule.inverse(schedule.level(np.arange(3)).logsnr), [0, 1, 2], atol=1e-9)
    assert np.all(np.isfinite(schedule.inverse(np.array([-50.0, 0.5]))))


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_get_noisier_and_preserve_variance(x64, name):
    level = SCHEDULES[name](num_steps=100).level(np.arange(100))
    assert np.all(np.diff(level.logsnr) < 0)
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_jitted_level_is_the_eager_one_in_any_shape(name):
    schedule = SCHEDULES[name](num_steps=50)
    for t in (np.int32(7), np.array([0, 49, 7]), np.array([[1, 2], [3, 4]])):
        eager, jitted = schedule.level(t), jax.jit(schedule.level)(t)
        for a, b in zip(eager, jitted, strict=True):
            assert a.shape == b.shape == t.shape
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SCHEDULES)
def test_whole_floats_serve_as_indices(name):
    schedule = SCHEDULES[name](num_steps=50)
    np.testing.assert_array_equal(schedule.level(np.array([3.0, 49.0])), schedule.level(np.array([3, 49])))


def test_logsnr_is_the_log_of_the_ratio_of_powers():
    np.testing.assert_allclose(Level(0, 0.6, 0.8).logsnr, np.log(0.36 / 0.64), rtol=1e-6)
    assert Level(0, 1.0, 0.0).logsnr == np.inf


def test_expand_appends_axes_and_leaves_scalars():
    level = Level(np.arange(3), np.ones(3), np.zeros(3)).expand(4)
    assert {a.shape for a in level} == {(3, 1, 1, 1)}
    assert {a.shape for a in Level(0, 1.0, 0.0).expand(4)} == {()}
