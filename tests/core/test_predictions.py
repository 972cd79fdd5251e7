import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import predictions, schedules
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.core.types import Level

ANY_LEVEL = ("eps", "x0", "v", "score", "flow", "edm")
SHAPES = [(6, 2), (6, 4, 4, 3), (6, 2, 2, 2, 1)]


def _levels(num):
    # variance preserving, exploding and rectified flow, as random as it gets away from alpha = 0
    # and sigma = 0
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
    np.testing.assert_allclose(
        parameterization.x0(target, alpha * x0 + sigma * eps, level), x0, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", PREDICTIONS)
def test_one_scalar_level_serves_all_examples(parameterization_of, x64, name):
    x0, eps, levels, _, _ = _case((6, 4, 4, 3), name)
    parameterization = parameterization_of(name)
    level = Level(*(a[1] for a in levels))
    each = Level(*(np.full(6, a) for a in level))
    target = parameterization.target(x0, eps, level)
    np.testing.assert_allclose(target, parameterization.target(x0, eps, each), rtol=1e-12)
    np.testing.assert_allclose(
        parameterization.x0(target, x0, level), parameterization.x0(target, x0, each), rtol=1e-12
    )


@pytest.mark.parametrize("name", PREDICTIONS)
def test_jit_is_eager(parameterization_of, x64, name):
    x0, eps, level, _, _ = _case((6, 4, 4, 3), name)
    parameterization = parameterization_of(name)
    for function in (parameterization.target, parameterization.x0):
        np.testing.assert_allclose(
            jax.jit(function)(x0, eps, level), function(x0, eps, level), rtol=1e-12, atol=1e-12
        )
    for jitted, eager in zip(
        jax.jit(parameterization.inputs)(x0, level), parameterization.inputs(x0, level), strict=True
    ):
        np.testing.assert_allclose(jitted, eager, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in ANY_LEVEL if name != "edm"])
def test_the_network_is_fed_x_and_t_as_they_are(name):
    x, _, level, _, _ = _case((6, 2))
    x_in, t_in = PREDICTIONS[name]().inputs(x, level)
    np.testing.assert_array_equal(x_in, x)
    np.testing.assert_array_equal(t_in, level.t)


@pytest.mark.parametrize("shape", SHAPES)
def test_targets_are_the_papers(x64, shape):
    x0, eps, level, alpha, sigma = _case(shape)
    expected = {
        "eps": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "score": -eps / sigma,
        "flow": eps - x0,
    }
    for name, target in expected.items():
        np.testing.assert_allclose(
            PREDICTIONS[name]().target(x0, eps, level), target, rtol=1e-12, err_msg=name
        )


def _karras(alpha, sigma, sigma_data=0.5):
    """c_skip, c_out, c_in, c_noise of Karras et al. 2022, table 1, of the sigma that x / alpha
    has."""
    sigma = sigma / alpha
    total = sigma**2 + sigma_data**2
    return (
        sigma_data**2 / total,
        sigma * sigma_data / np.sqrt(total),
        1 / np.sqrt(total),
        np.log(sigma) / 4,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_is_karras_preconditioning(x64, shape, sigma_data):
    x0, eps, level, alpha, sigma = _case(shape)
    edm, x = predictions.edm(sigma_data), alpha * x0 + sigma * eps
    c_skip, c_out, c_in, c_noise = _karras(alpha, sigma, sigma_data)
    x_in, t_in = edm.inputs(x, level)
    np.testing.assert_allclose(x_in, c_in * x / alpha, rtol=1e-12)
    np.testing.assert_allclose(t_in, c_noise.ravel(), rtol=1e-12)
    np.testing.assert_allclose(
        edm.target(x0, eps, level), (x0 - c_skip * x / alpha) / c_out, rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        edm.x0(eps, x, level), c_skip * x / alpha + c_out * eps, rtol=1e-12, atol=1e-12
    )
    assert PREDICTIONS["edm"]().inputs(x, level)[0].shape == x.shape
    np.testing.assert_array_equal(
        PREDICTIONS["edm"]().x0(eps, x, level), predictions.edm(0.5).x0(eps, x, level)
    )


def test_edm_feeds_and_asks_for_unit_variance(x64):
    # Karras et al. 2022, appendix B.6: the principle that gives the coefficients
    rng, edm = np.random.default_rng(0), predictions.edm(0.7)
    x0, eps = 0.7 * rng.normal(size=20_000), rng.normal(size=20_000)
    for alpha, sigma in ((1.0, 0.01), (1.0, 80.0), (0.6, 0.8), (0.1, 0.9)):
        level = Level(0.0, alpha, sigma)
        # 4 standard errors
        np.testing.assert_allclose(
            np.std(edm.inputs(alpha * x0 + sigma * eps, level)[0]), 1, atol=4 / np.sqrt(40_000)
        )
        np.testing.assert_allclose(np.std(edm.target(x0, eps, level)), 1, atol=4 / np.sqrt(40_000))


def test_float32_keeps_edms_target_at_the_least_noise():
    # c_out = 0.002 there: the paper's quotient of a difference would lose three digits
    x0, eps = np.random.default_rng(0).normal(size=(2, 100))
    alpha, sigma = 1.0, 0.002
    c_skip, c_out, _, _ = _karras(alpha, sigma)
    expected = (x0 - c_skip * (alpha * x0 + sigma * eps)) / c_out
    found = predictions.edm().target(
        x0.astype(np.float32), eps.astype(np.float32), Level(0, *np.float32([alpha, sigma]))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_flow_is_the_paths_derivative(x64):
    # Liu et al. 2022, eq. 1: the velocity of x_t = (1 - t) x0 + t eps
    x0, eps, t = 0.3, -1.2, 0.7
    velocity = jax.grad(lambda t: (1 - t) * x0 + t * eps)(t)
    level = Level(t, 1 - t, t)
    target = predictions.flow().target(np.array([x0]), np.array([eps]), level)
    np.testing.assert_allclose(target, velocity, rtol=1e-12)
    # one Euler step along a constant velocity ends at the data
    x = np.array([(1 - t) * x0 + t * eps])
    np.testing.assert_allclose(
        predictions.flow().x0(target, x, level), x - t * velocity, rtol=1e-12
    )


def test_flow_is_decoded_from_pure_noise(x64):
    x, out = np.random.default_rng(0).normal(size=(2, 3, 4))
    np.testing.assert_allclose(
        predictions.flow().x0(out, x, Level(1.0, 0.0, 1.0)), x - out, rtol=1e-12
    )


def test_mean_needs_a_table():
    with pytest.raises(ValueError, match="table"):
        predictions.mean(schedules.vp())


def test_v_is_the_derivative_along_the_angle(x64):
    # Salimans & Ho 2022: with alpha = cos(phi), sigma = sin(phi), v = d x_phi / d phi
    x0, eps, phi = 0.3, -1.2, 0.7
    v = jax.grad(lambda phi: jnp.cos(phi) * x0 + jnp.sin(phi) * eps)(phi)
    target = PREDICTIONS["v"]().target(
        np.array([x0]), np.array([eps]), Level(0, np.cos(phi), np.sin(phi))
    )
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
    expected["flow"] = (x - sigma * out) / (alpha + sigma)
    for name, x0 in expected.items():
        np.testing.assert_allclose(
            PREDICTIONS[name]().x0(out, x, level), x0, rtol=1e-12, err_msg=name
        )
    v = PREDICTIONS["v"]().x0(out, x, level)
    np.testing.assert_allclose(
        np.where(vp, v, 0), np.where(vp, alpha * x - sigma * out, 0), rtol=1e-12
    )


@pytest.mark.parametrize(("name", "peer_name"), [("eps", "EPSILON"), ("x0", "START_X")])
@pytest.mark.parametrize("table", ["linear_1000", "cosine_100", "cosine_4000"])
def test_decodings_are_the_peers(reference, x64, name, peer_name, table):
    peer = reference("pointwise.npz")
    kind, num_steps = table.split("_")
    level = SCHEDULES[kind](int(num_steps)).level(peer[f"{table}/t"])
    x0 = PREDICTIONS[name]().x0(peer["model_output"], peer[f"{table}/x_t"], level)
    # the peer's x0 at the noisy end is a float32 difference of numbers 1 / alpha in size
    scale = (1 / level.alpha).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
        x0 / scale, peer[f"{table}/{peer_name}/p_pred_xstart"] / scale, atol=2e-6
    )
