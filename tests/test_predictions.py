import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.predictions import PREDICTIONS
from diffusion_jax.schedules import SCHEDULES
from diffusion_jax.types import Level

ANY_LEVEL = ("eps", "x0", "v", "score")
SHAPES = [(6, 2), (6, 4, 4, 3), (6, 2, 2, 2, 1)]


def _levels(num):
    # variance preserving, exploding and rectified flow, as random as it gets away from alpha = 0 and sigma = 0
    t = np.random.default_rng(1).uniform(0.05, 0.95, num)
    kind = np.arange(num) % 3
    alpha = np.choose(kind, [np.cos(t * np.pi / 2), np.ones(num), 1 - t])
    sigma = np.choose(kind, [np.sin(t * np.pi / 2), 50 * t, t])
    return Level(t, alpha, sigma)


def _table_levels(num):
    # of linear(100), for those that need a schedule; index 0 among them
    t = np.append(0, np.random.default_rng(1).integers(1, 100, num - 1))
    alphas_cumprod = np.cumprod(1 - np.linspace(1e-3, 0.2, 100))[t]
    return Level(t, np.sqrt(alphas_cumprod), np.sqrt(1 - alphas_cumprod))


def _case(shape, name=None):
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, *shape))
    level = (_levels if name is None or name in ANY_LEVEL else _table_levels)(shape[0])
    column = lambda a: a.reshape(-1, *[1] * (len(shape) - 1))
    return x0, eps, level, column(level.alpha), column(level.sigma)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_the_target_gives_x0(parameterization_of, x64, name, shape):
    x0, eps, level, alpha, sigma = _case(shape, name)
    parameterization = parameterization_of(name)
    target = parameterization.target(x0, eps, level)
    assert target.shape == x0.shape
    np.testing.assert_allclose(parameterization.x0(target, alpha * x0 + sigma * eps, level), x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_one_scalar_level_serves_all_examples(parameterization_of, x64, name):
    x0, eps, levels, _, _ = _case((6, 4, 4, 3), name)
    parameterization = parameterization_of(name)
    level = Level(*(a[1] for a in levels))
    each = Level(*(np.full(6, a) for a in level))
    target = parameterization.target(x0, eps, level)
    np.testing.assert_allclose(target, parameterization.target(x0, eps, each), rtol=1e-12)
    np.testing.assert_allclose(parameterization.x0(target, x0, level), parameterization.x0(target, x0, each), rtol=1e-12)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_jit_is_eager(parameterization_of, x64, name):
    x0, eps, level, _, _ = _case((6, 4, 4, 3), name)
    parameterization = parameterization_of(name)
    for function in (parameterization.target, parameterization.x0):
        np.testing.assert_allclose(jax.jit(function)(x0, eps, level), function(x0, eps, level), rtol=1e-12, atol=1e-12)
    for jitted, eager in zip(jax.jit(parameterization.inputs)(x0, level), parameterization.inputs(x0, level), strict=True):
        np.testing.assert_allclose(jitted, eager, rtol=1e-12)


@pytest.mark.parametrize("name", ANY_LEVEL)
def test_the_network_is_fed_x_and_t_as_they_are(name):
    x, _, level, _, _ = _case((6, 2))
    x_in, t_in = PREDICTIONS[name]().inputs(x, level)
    np.testing.assert_array_equal(x_in, x)
    np.testing.assert_array_equal(t_in, level.t)


@pytest.mark.parametrize("shape", SHAPES)
def test_targets_are_the_papers(x64, shape):
    x0, eps, level, alpha, sigma = _case(shape)
    expected = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma}
    for name, target in expected.items():
        np.testing.assert_allclose(PREDICTIONS[name]().target(x0, eps, level), target, rtol=1e-12, err_msg=name)


def test_v_is_the_derivative_along_the_angle(x64):
    # Salimans & Ho 2022: with alpha = cos(phi), sigma = sin(phi), v = d x_phi / d phi
    x0, eps, phi = 0.3, -1.2, 0.7
    v = jax.grad(lambda phi: jnp.cos(phi) * x0 + jnp.sin(phi) * eps)(phi)
    target = PREDICTIONS["v"]().target(np.array([x0]), np.array([eps]), Level(0, np.cos(phi), np.sin(phi)))
    np.testing.assert_allclose(target, v, rtol=1e-12)


def test_score_is_the_gradient_of_the_log_density(x64):
    x0, eps, level, alpha, sigma = _case((6, 2))
    log_density = lambda x: jax.scipy.stats.norm.logpdf(x, alpha * x0, sigma).sum()
    score = jax.grad(log_density)(alpha * x0 + sigma * eps)
    np.testing.assert_allclose(PREDICTIONS["score"]().target(x0, eps, level), score, rtol=1e-9)


def test_decodings_are_the_papers(x64):
    x, out, level, alpha, sigma = _case((6, 4, 4, 3))
    vp = (np.arange(6) % 3 == 0)[:, None, None, None]
    expected = {"eps": (x - sigma * out) / alpha, "x0": out, "score": (x + sigma**2 * out) / alpha}
    for name, x0 in expected.items():
        np.testing.assert_allclose(PREDICTIONS[name]().x0(out, x, level), x0, rtol=1e-12, err_msg=name)
    v = PREDICTIONS["v"]().x0(out, x, level)
    np.testing.assert_allclose(np.where(vp, v, 0), np.where(vp, alpha * x - sigma * out, 0), rtol=1e-12)


@pytest.mark.parametrize(("name", "peer_name"), [("eps", "EPSILON"), ("x0", "START_X")])
@pytest.mark.parametrize("table", ["linear_1000", "cosine_100", "cosine_4000"])
def test_decodings_are_the_peers(reference, x64, name, peer_name, table):
    peer = reference("pointwise.npz")
    kind, num_steps = table.split("_")
    level = SCHEDULES[kind](int(num_steps)).level(peer[f"{table}/t"])
    x0 = PREDICTIONS[name]().x0(peer["model_output"], peer[f"{table}/x_t"], level)
    # the peer's x0 at the noisy end is a float32 difference of numbers 1 / alpha in size
    scale = (1 / level.alpha).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(x0 / scale, peer[f"{table}/{peer_name}/p_pred_xstart"] / scale, atol=2e-6)
