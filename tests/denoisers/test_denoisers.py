import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.denoisers import classifier_free, clip_x0, make_denoiser

SHAPE = (3, 4, 4, 2)
T = np.array([3, 50, 98])
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-3, 0.2, 100))[T]  # of linear(100)
LEVEL = Level(T, np.sqrt(ALPHAS_CUMPROD), np.sqrt(1 - ALPHAS_CUMPROD))
COLUMN = (3, 1, 1, 1)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=SHAPE)


def _consistent(prediction, x, level):
    level = level.expand(x.ndim)
    np.testing.assert_allclose(
        level.alpha * prediction.x0 + level.sigma * prediction.eps, x, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", PREDICTIONS)
def test_a_perfect_network_denoises_perfectly(parameterization_of, x64, name):
    x0, eps = np.random.default_rng(1).normal(size=(2, *SHAPE))
    x = LEVEL.alpha.reshape(COLUMN) * x0 + LEVEL.sigma.reshape(COLUMN) * eps
    parameterization = parameterization_of(name)
    network = lambda params, x_in, t_in, cond: parameterization.target(x0, eps, LEVEL)
    prediction = make_denoiser(network, None, parameterization)(x, LEVEL)
    np.testing.assert_allclose(prediction.x0, x0, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(prediction.eps, eps, rtol=1e-9, atol=1e-9)
    assert prediction.aux is None


@pytest.mark.parametrize("name", PREDICTIONS)
def test_x0_and_eps_agree_with_x_whatever_the_network_says(parameterization_of, x64, x, name):
    prediction = make_denoiser(
        lambda params, x, t, cond: jnp.sin(5 * x), None, parameterization_of(name)
    )(x, LEVEL)
    _consistent(prediction, x, LEVEL)


def test_twice_the_channels_give_the_variance_fraction(x64, x):
    mean = np.random.default_rng(1).normal(size=SHAPE)
    v = np.random.default_rng(2).uniform(-1, 1, SHAPE)
    v[0, 0, 0] = [-1, 1]
    network = lambda params, x, t, cond: jnp.concatenate([mean, v], axis=-1)
    prediction = make_denoiser(network, None, PREDICTIONS["x0"]())(x, LEVEL)
    np.testing.assert_allclose(prediction.x0, mean, rtol=1e-12)
    np.testing.assert_allclose(prediction.aux, (v + 1) / 2, rtol=1e-12)
    np.testing.assert_array_equal(prediction.aux[0, 0, 0], [0, 1])
    assert prediction.aux.min() >= 0
    assert prediction.aux.max() <= 1
    _consistent(prediction, x, LEVEL)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_a_wrong_number_of_channels_is_a_clear_error(x, channels):
    denoiser = make_denoiser(
        lambda *_: jnp.zeros((*SHAPE[:-1], channels)), None, PREDICTIONS["eps"]()
    )
    with pytest.raises(ValueError, match=f"{channels} channels for 2-channel data"):
        denoiser(x, LEVEL)


def test_the_network_gets_params_x_t_and_cond(x):
    seen = []

    def network(*args):
        seen.append(args)
        return args[1]

    labels = np.arange(3)
    make_denoiser(network, {"w": 1.0}, PREDICTIONS["eps"](), labels)(x, LEVEL)
    make_denoiser(network, {"w": 1.0}, PREDICTIONS["eps"]())(x, LEVEL)
    (params, x_in, t_in, cond), (*_, no_cond) = seen
    assert params == {"w": 1.0}
    assert cond is labels
    assert no_cond is None
    np.testing.assert_array_equal(x_in, x)
    np.testing.assert_array_equal(t_in, LEVEL.t)


def test_a_scalar_level_reaches_the_network_as_one_t_per_example(x):
    seen = []

    def network(params, x_in, t_in, cond):
        seen.append(t_in)
        return x_in * t_in[:, None, None, None]

    denoiser = make_denoiser(network, None, PREDICTIONS["v"]())
    scalar = denoiser(x, Level(50, 0.8, 0.6))
    batched = denoiser(x, Level(np.full(3, 50), np.full(3, 0.8), np.full(3, 0.6)))
    np.testing.assert_array_equal(seen[0], [50, 50, 50])
    assert jnp.issubdtype(seen[0].dtype, jnp.integer)
    np.testing.assert_array_equal(scalar.x0, batched.x0)
    np.testing.assert_array_equal(scalar.eps, batched.eps)


def test_clipping_bounds_x0_and_recomputes_eps(x64, x):
    network = lambda params, x, t, cond: jnp.concatenate([2 * x, jnp.tanh(x)], axis=-1)
    denoiser = make_denoiser(network, None, PREDICTIONS["x0"]())
    for low, high in ((-1.0, 1.0), (0.0, 0.5)):
        clipped = clip_x0(denoiser, low, high)(x, LEVEL)
        expected = np.clip(2 * x, low, high)
        np.testing.assert_allclose(clipped.x0, expected, rtol=1e-12)
        eps = (x - LEVEL.alpha.reshape(COLUMN) * expected) / LEVEL.sigma.reshape(COLUMN)
        np.testing.assert_allclose(clipped.eps, eps, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(clipped.aux, (np.tanh(x) + 1) / 2, rtol=1e-12)
    np.testing.assert_array_equal(
        clip_x0(denoiser)(x, LEVEL).x0, clip_x0(denoiser, -1.0, 1.0)(x, LEVEL).x0
    )


def test_clipping_what_is_in_range_changes_nothing(x64, x):
    denoiser = make_denoiser(lambda params, x, t, cond: jnp.tanh(x), None, PREDICTIONS["x0"]())
    plain, clipped = denoiser(x, LEVEL), clip_x0(denoiser)(x, LEVEL)
    np.testing.assert_array_equal(clipped.x0, plain.x0)
    np.testing.assert_array_equal(clipped.eps, plain.eps)


def _constant(value, aux=None):
    def denoiser(x, level):
        level = level.expand(x.ndim)
        eps = value * jnp.cos(x)
        return Prediction((x - level.sigma * eps) / level.alpha, eps, aux)

    return denoiser


def test_guidance_weighs_the_noises(x64, x):
    conditional, unconditional = (
        _constant(0.7, aux="conditional"),
        _constant(-0.4, aux="unconditional"),
    )
    for w in (0.5, 3.0, jnp.asarray(1.5)):
        guided = classifier_free(conditional, unconditional, w)(x, LEVEL)
        np.testing.assert_allclose(guided.eps, ((1 + w) * 0.7 + w * 0.4) * np.cos(x), rtol=1e-12)
        _consistent(guided, x, LEVEL)
        assert guided.aux == "conditional"


def test_no_guidance_is_the_conditional_and_minus_one_the_unconditional(x64, x):
    conditional, unconditional = _constant(0.7), _constant(-0.4)
    for w, expected in ((0.0, conditional), (-1.0, unconditional)):
        guided, plain = classifier_free(conditional, unconditional, w)(x, LEVEL), expected(x, LEVEL)
        np.testing.assert_allclose(guided.x0, plain.x0, rtol=1e-12)
        np.testing.assert_allclose(guided.eps, plain.eps, rtol=1e-12)


def test_jit_is_eager(x64, x):
    denoiser = make_denoiser(
        lambda params, x, t, cond: params * jnp.sin(x), 0.3, PREDICTIONS["v"]()
    )
    guided = classifier_free(clip_x0(denoiser), denoiser, 2.0)
    for jitted, eager in zip(jax.jit(guided)(x, LEVEL)[:2], guided(x, LEVEL)[:2], strict=True):
        np.testing.assert_allclose(jitted, eager, rtol=1e-10, atol=1e-12)
