import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.process import q_posterior, q_sample, q_step
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.core.types import CLEAN, Level

SHAPES = {"points": (3, 2), "images": (3, 4, 4, 2), "videos": (3, 2, 4, 4, 1)}


def _vp(t):
    t = np.asarray(t, float)
    return Level(t, np.cos(t * np.pi / 2), np.sin(t * np.pi / 2))


def _ve(t):
    t = np.asarray(t, float)
    return Level(t, np.ones_like(t), 80 * t)


def _flow(t):
    t = np.asarray(t, float)
    return Level(t, 1 - t, t)


FAMILIES = {"vp": _vp, "ve": _ve, "flow": _flow}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=shape), rng.normal(size=shape)) for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_q_sample_is_alpha_x0_plus_sigma_eps(data, x64, shape):
    x0, eps = data[shape]
    level = _vp([0.1, 0.5, 0.9])
    x = q_sample(x0, eps, level)
    for i in range(3):
        np.testing.assert_allclose(
            x[i], level.alpha[i] * x0[i] + level.sigma[i] * eps[i], rtol=1e-12
        )


def test_steps_compose_to_the_jump(reference, x64):
    # a step is Gaussian and linear: signal scales multiply, and each step scales the variance so
    # far and adds its own
    tables = reference("schedules.npz")
    schedule = SCHEDULES["cosine"](50)
    t = schedule.level(np.arange(50))
    s = Level(*(np.append(first, a[:-1]) for first, a in zip(CLEAN, t, strict=True)))
    scale, std = q_step(np.ones(50), np.zeros(50), s, t), q_step(np.zeros(50), np.ones(50), s, t)
    alpha, variance = 1.0, 0.0
    for i in range(50):
        alpha, variance = (
            float(scale[i]) * alpha,
            float(scale[i]) ** 2 * variance + float(std[i]) ** 2,
        )
        np.testing.assert_allclose(alpha**2, tables["cosine_50/alphas_cumprod"][i], rtol=1e-11)
        np.testing.assert_allclose(variance, 1 - tables["cosine_50/alphas_cumprod"][i], rtol=1e-11)


def test_a_step_between_neighbours_is_the_tables_beta(reference, x64):
    betas = reference("schedules.npz")["cosine_50/betas"]
    schedule = SCHEDULES["cosine"](50)
    s, t = schedule.level(np.arange(49)), schedule.level(np.arange(1, 50))
    np.testing.assert_allclose(
        q_step(np.ones(49), np.zeros(49), s, t) ** 2, 1 - betas[1:], rtol=1e-11
    )
    np.testing.assert_allclose(q_step(np.zeros(49), np.ones(49), s, t) ** 2, betas[1:], rtol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_are_one_longer_step(x64, family):
    r, s, t = (FAMILIES[family](x) for x in (0.15, 0.4, 0.7))
    one, zero = np.ones(1), np.zeros(1)
    scale = q_step(q_step(one, zero, r, s), zero, s, t)
    variance = q_step(q_step(zero, one, r, s), zero, s, t) ** 2 + q_step(zero, one, s, t) ** 2
    np.testing.assert_allclose(scale, q_step(one, zero, r, t), rtol=1e-12)
    np.testing.assert_allclose(variance, q_step(zero, one, r, t) ** 2, rtol=1e-12)


def test_a_step_from_clean_data_is_the_jump(data, x64):
    x0, eps = data["images"]
    level = _vp([0.1, 0.5, 0.9])
    np.testing.assert_allclose(q_step(x0, eps, CLEAN, level), q_sample(x0, eps, level), rtol=1e-12)


def _bayes(x0, x_t, alpha_s, sigma_s, alpha_t, sigma_t):
    # prior x_s | x0 ~ N(alpha_s x0, sigma_s^2), likelihood x_t | x_s ~ N(a x_s, b): precisions add
    a = alpha_t / alpha_s
    b = sigma_t**2 - a**2 * sigma_s**2
    precision = 1 / sigma_s**2 + a**2 / b
    return (alpha_s * x0 / sigma_s**2 + a * x_t / b) / precision, 1 / precision


@pytest.mark.parametrize("family", FAMILIES)
def test_posterior_is_bayes_rule_between_any_two_levels(x64, family):
    rng = np.random.default_rng(0)
    near, far = np.sort(rng.uniform(0.02, 0.98, (2, 200)), axis=0)
    s, t = FAMILIES[family](near), FAMILIES[family](far)
    x0, x_t = rng.normal(size=(2, 200))
    mean, variance = q_posterior(x0, x_t, s, t)
    expected_mean, expected_variance = _bayes(x0, x_t, s.alpha, s.sigma, t.alpha, t.sigma)
    np.testing.assert_allclose(variance, expected_variance, rtol=1e-9)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["linear_1000", "cosine_100", "cosine_4000"])
def test_marginal_and_posterior_are_the_peers(reference, x64, name):
    peer = reference("pointwise.npz")
    kind, num_steps = name.split("_")
    schedule = SCHEDULES[kind](int(num_steps))
    t = peer[f"{name}/t"]
    x_t = q_sample(peer["x_start"], peer["noise"], schedule.level(t))
    np.testing.assert_allclose(x_t, peer[f"{name}/x_t"], atol=2e-6)
    inner = t > 0  # at index 0 the peer's clipped log-variance stands for log 0
    s, t = schedule.level(t[inner] - 1), schedule.level(t[inner])
    mean, variance = q_posterior(peer["x_start"][inner], peer[f"{name}/x_t"][inner], s, t)
    np.testing.assert_allclose(mean, peer[f"{name}/q_posterior_mean"][inner], atol=2e-6)
    np.testing.assert_allclose(
        np.log(variance).ravel(), peer[f"{name}/q_posterior_log_variance"][inner], rtol=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_posterior_at_clean_data_is_x0_without_variance(data, family):
    x0, x_t = (np.float32(a) for a in data["images"])
    mean, variance = q_posterior(x0, x_t, CLEAN, FAMILIES[family](np.array([0.001, 0.5, 1.0])))
    np.testing.assert_array_equal(mean, x0)
    np.testing.assert_array_equal(variance, jnp.zeros_like(variance))


def test_pure_noise_says_nothing_about_the_cleaner_level(data):
    # alpha_t = 0, the noisy end of rectified flow: the posterior is the marginal q(x_s | x0)
    x0, x_t = data["points"]
    s, t = _flow([0.2, 0.5, 0.9]), _flow([1.0, 1.0, 1.0])
    mean, variance = q_posterior(x0, x_t, s, t)
    np.testing.assert_allclose(mean, s.alpha[:, None] * x0, rtol=1e-6)
    np.testing.assert_allclose(variance, s.sigma[:, None] ** 2, rtol=1e-6)
    np.testing.assert_allclose(q_step(x0, x_t, s, t), x_t, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_scalar_level_is_the_same_level_for_every_example(data, shape):
    x0, x = data[shape]
    s, t = _vp(0.3), _vp(0.6)
    each_s, each_t = _vp(np.full(3, 0.3)), _vp(np.full(3, 0.6))
    pairs = [
        (q_sample(x0, x, t), q_sample(x0, x, each_t)),
        (q_step(x0, x, s, t), q_step(x0, x, each_s, each_t)),
        (q_posterior(x0, x, s, t)[0], q_posterior(x0, x, each_s, each_t)[0]),
    ]
    for scalar, batched in pairs:
        assert scalar.shape == x0.shape
        np.testing.assert_allclose(scalar, batched, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_examples_keep_to_their_own_levels(data, shape):
    x0, x = data[shape]
    near, far = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.7, 0.9])
    step, (mean, variance) = (
        q_step(x0, x, _vp(near), _vp(far)),
        q_posterior(x0, x, _vp(near), _vp(far)),
    )
    variance = jnp.broadcast_to(variance, x0.shape)
    for i in range(3):
        s, t = _vp(near[i]), _vp(far[i])
        a = t.alpha / s.alpha
        np.testing.assert_allclose(
            step[i],
            a * x0[i] + np.sqrt(t.sigma**2 - a**2 * s.sigma**2) * x[i],
            rtol=1e-4,
            atol=1e-5,
        )
        expected_mean, expected_variance = _bayes(x0[i], x[i], s.alpha, s.sigma, t.alpha, t.sigma)
        np.testing.assert_allclose(mean[i], expected_mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance[i], expected_variance, rtol=1e-4)
