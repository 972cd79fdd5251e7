"""Guidance, thresholding and the cached branch, against the formulas of the papers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.denoisers import (
    autoguidance,
    classifier_free,
    classifier_guided,
    clip_x0,
    dynamic_threshold,
    make_denoiser,
)
from diffusion_jax.samplers import ddim, sample
from diffusion_jax.samplers.cached import cached

SHAPE = (3, 4, 4, 2)
COLUMN = (3, 1, 1, 1)
SIGMA = np.array([0.1, 0.6, 0.98])
LEVEL = Level(np.array([3, 50, 98]), np.sqrt(1 - SIGMA**2), SIGMA)
GRID = Level(
    np.arange(7, -1, -1), np.cos(np.linspace(1.5, 0.1, 8)), np.sin(np.linspace(1.5, 0.1, 8))
)
KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=SHAPE)


def _counted(calls):
    """A network that notes the batch of every call, and whose output depends on all that it is
    given."""

    def apply_fn(params, x, t, cond):
        calls.append(x.shape[0])
        shift = 0.01 * t if cond is None else 0.01 * t + cond.reshape(cond.shape[0], -1)[:, 0]
        return params * jnp.sin(x + shift[:, None, None, None])

    return apply_fn


def _x0(function):
    """The denoiser whose clean image is function(x)."""

    def denoiser(x, level):
        level, x0 = level.expand(x.ndim), function(x)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma, "its own")

    return denoiser


def _consistent(prediction, x, level):
    level = level.expand(x.ndim)
    np.testing.assert_allclose(
        level.alpha * prediction.x0 + level.sigma * prediction.eps, x, rtol=1e-9, atol=1e-9
    )


# One call or two


@pytest.mark.parametrize("level", [LEVEL, Level(50, 0.8, 0.6)], ids=["levels", "level"])
def test_two_conditions_of_a_network_are_one_call_with_the_result_of_two(x64, x, level):
    calls = []
    network, v = _counted(calls), PREDICTIONS["v"]()
    conditional = make_denoiser(network, 0.7, v, np.array([1, 2, 0]))
    other = conditional._replace(cond=np.array([3, 3, 3]))
    guided = classifier_free(conditional, other, 2.0)(x, level)
    assert calls == [6]
    apart = classifier_free(lambda *a: conditional(*a), lambda *a: other(*a), 2.0)(x, level)
    assert calls == [6, 3, 3]
    np.testing.assert_allclose(guided.x0, apart.x0, rtol=1e-12)
    np.testing.assert_allclose(guided.eps, apart.eps, rtol=1e-12)


def test_a_network_written_out_twice_is_one(x):
    calls = []

    class Module:  # as Flax's: every `module.apply` is a new object
        def apply(self, params, x, t, cond):
            calls.append(x.shape[0])
            return x + cond[:, None, None, None]

    module, params = Module(), {"w": np.ones(3)}
    halves = [
        make_denoiser(module.apply, dict(params), PREDICTIONS["eps"](), np.full(3, label))
        for label in (1, 2)
    ]
    classifier_free(*halves, 1.0)(x, LEVEL)
    assert calls == [6]


def test_learned_variance_is_the_conditionals_in_one_call(x64, x):
    network = lambda params, x, t, cond: jnp.concatenate(
        [x, 0 * x + cond[:, None, None, None]], axis=-1
    )
    conditional = make_denoiser(network, None, PREDICTIONS["x0"](), np.array([0.0, 0.5, 1.0]))
    guided = classifier_free(conditional, conditional._replace(cond=-np.ones(3)), 2.0)(x, LEVEL)
    np.testing.assert_allclose(guided.aux[:, 0, 0, 0], [0.5, 0.75, 1.0])


def test_a_guided_chain_calls_the_network_once_a_denoiser_call(x):
    calls, asked = [], []
    conditional = make_denoiser(_counted(calls), 0.7, PREDICTIONS["v"](), np.array([1, 2, 0]))
    guided = classifier_free(conditional, conditional._replace(cond=np.array([3, 3, 3])), 2.0)

    def noted(x, level):
        asked.append(1)
        return guided(x, level)

    jax.jit(lambda x: sample(ddim(), noted, KEYS, x, GRID))(x)
    assert calls == [6] * len(asked)


LABELS = np.array([1, 2, 0])


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d._replace(params=0.3),
        lambda d: d._replace(parameterization=PREDICTIONS["eps"]()),
        lambda d: d._replace(apply_fn=lambda *a, f=d.apply_fn: f(*a)),
        lambda d: d._replace(cond=None),
        lambda d: d._replace(cond=LABELS[:, None]),
        lambda d: d._replace(cond=LABELS.astype(float)),
        lambda d: clip_x0(d),
    ],
    ids=["params", "parameterization", "apply_fn", "no cond", "shape", "dtype", "wrapped"],
)
def test_all_others_are_two_calls(x64, x, change):
    calls = []
    denoiser = make_denoiser(_counted(calls), 0.7, PREDICTIONS["v"](), LABELS)
    other = change(denoiser)
    guided = autoguidance(denoiser, other, 0.5)(x, LEVEL)
    assert calls == [3, 3]
    d, weaker = denoiser(x, LEVEL), other(x, LEVEL)
    np.testing.assert_allclose(
        guided.x0, weaker.x0 + 1.5 * (d.x0 - weaker.x0), rtol=1e-9, atol=1e-12
    )  # Karras, eq. 3
    _consistent(guided, x, LEVEL)


def test_conditions_shared_by_the_batch_are_not_stacked(x):
    calls = []
    denoiser = make_denoiser(_counted(calls), 0.7, PREDICTIONS["v"](), np.array([1]))
    classifier_free(denoiser, denoiser._replace(cond=np.array([2])), 1.0)(x, LEVEL)
    assert calls == [3, 3]


# Guidance


def test_each_example_has_its_own_weight(x64, x):
    w = np.array([0.0, 1.0, -0.5])
    guided = jax.jit(lambda w, x: classifier_free(_x0(jnp.tanh), _x0(jnp.cos), w)(x, LEVEL)[:2])(
        w, x
    )
    expected = (1 + w.reshape(COLUMN)) * np.tanh(x) - w.reshape(COLUMN) * np.cos(x)
    np.testing.assert_allclose(guided[0], expected, rtol=1e-12)
    _consistent(Prediction(*guided), x, LEVEL)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_guidance_acts_in_its_interval_alone(x64, alpha):
    x = np.random.default_rng(1).normal(size=(4, 5))
    ratios, acts = (
        np.array([0.5, 1.0, 2.0, 2.5]),
        np.array([0, 1, 1, 0]),
    )  # low itself is outside, high inside
    guided = classifier_free(_x0(jnp.tanh), _x0(jnp.cos), 3.0, interval=(0.5, 2.0))
    expected = np.tanh(x) + 3.0 * acts[:, None] * (np.tanh(x) - np.cos(x))
    levels = Level(np.arange(4), np.full(4, alpha), alpha * ratios)
    np.testing.assert_allclose(guided(x, levels).x0, expected, rtol=1e-12)
    _consistent(guided(x, levels), x, levels)
    for i in range(4):
        level = Level(i, alpha, alpha * ratios[i])
        np.testing.assert_allclose(guided(x[i : i + 1], level).x0, expected[i : i + 1], rtol=1e-12)
    weights = classifier_free(
        _x0(jnp.tanh), _x0(jnp.cos), np.full(1, 3.0), interval=(0.5, 2.0)
    )  # of [1] at one level
    np.testing.assert_allclose(
        weights(x[1:2], Level(0, alpha, alpha)).x0, expected[1:2], rtol=1e-12
    )


def test_guidance_is_off_where_the_signal_ends(x64, x):
    pure_noise = Level(99, 0.0, 1.0)
    guided = classifier_free(_x0(jnp.tanh), _x0(jnp.cos), 3.0, interval=(0.0, 5.0))(x, pure_noise)
    np.testing.assert_allclose(guided.x0, np.tanh(x), rtol=1e-12)


@pytest.mark.parametrize("phi", [0.7, 1.0])
def test_rescaled_guidance_is_the_papers(x64, x, phi):
    guided = classifier_free(_x0(jnp.tanh), _x0(jnp.cos), 3.0, rescale=phi)(x, LEVEL)
    for i in range(3):
        x_cfg = 4.0 * np.tanh(x[i]) - 3.0 * np.cos(x[i])
        rescaled = x_cfg * np.tanh(x[i]).std() / x_cfg.std()
        np.testing.assert_allclose(guided.x0[i], phi * rescaled + (1 - phi) * x_cfg, rtol=1e-10)
    _consistent(guided, x, LEVEL)
    assert guided.aux == "its own"


def test_an_image_without_contrast_keeps_its_level(x64, x):
    flat = _x0(lambda x: jnp.full(x.shape, 0.3))
    np.testing.assert_allclose(classifier_free(flat, flat, 3.0, rescale=1.0)(x, LEVEL).x0, 0.3)


@pytest.mark.parametrize(
    "options",
    [{"interval": (2.0, 1.0)}, {"interval": (-1.0, 1.0)}, {"rescale": 1.1}, {"rescale": -0.1}],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="not"):
        classifier_free(_x0(jnp.tanh), _x0(jnp.cos), 1.0, **options)


# A classifier

WEIGHTS, MEANS, STDS = (
    np.array([0.3, 0.7]),
    np.array([[-1.0, 0.5], [0.8, 1.2]]),
    np.array([0.4, 0.9]),
)


def _log_joint(x, level):
    """log p(y) p(x | y) [B, 2] of two isotropic Gaussians in the plane, each noised to `level`
    [B]."""
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    variance = alpha**2 * STDS**2 + sigma**2
    squares = ((x[:, None] - alpha[..., None] * MEANS) ** 2).sum(-1)
    return jnp.log(WEIGHTS) - jnp.log(variance) - squares / (2 * variance)


def _component(y):
    def denoiser(x, level):
        level = level.expand(2)
        gain = level.alpha * STDS[y] ** 2 / (level.alpha**2 * STDS[y] ** 2 + level.sigma**2)
        x0 = MEANS[y] + gain * (x - level.alpha * MEANS[y])
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoiser


def _mixture(x, level):
    share = jax.nn.softmax(_log_joint(x, level))
    parts = [_component(y)(x, level) for y in (0, 1)]
    return Prediction(
        *(
            share[:, :1] * a + share[:, 1:] * b
            for a, b in zip(parts[0][:2], parts[1][:2], strict=True)
        ),
        "aux",
    )


@pytest.mark.parametrize("y", [0, 1])
def test_an_exact_classifier_makes_the_exact_conditional_denoiser(x64, y):
    x = np.random.default_rng(2).normal(size=(3, 2))
    log_prob = lambda x, level: jax.nn.log_softmax(_log_joint(x, level))[:, y]
    guided, exact = classifier_guided(_mixture, log_prob)(x, LEVEL), _component(y)(x, LEVEL)
    np.testing.assert_allclose(guided.x0, exact.x0, rtol=1e-9)
    np.testing.assert_allclose(guided.eps, exact.eps, rtol=1e-9)
    assert guided.aux == "aux"
    # the scale is 1 + w of classifier-free guidance
    scale = np.array([0.0, 1.5, 3.0])
    scaled = classifier_guided(_mixture, log_prob, scale)(x, LEVEL)
    free = classifier_free(_component(y), _mixture, scale - 1)(x, LEVEL)
    np.testing.assert_allclose(scaled.x0, free.x0, rtol=1e-9)
    np.testing.assert_allclose(scaled.eps, free.eps, rtol=1e-9)


# Thresholds


@pytest.mark.parametrize(("percentile", "least"), [(0.9, 1.0), (0.5, 0.2), (1.0, 1.0)])
def test_dynamic_thresholding_is_the_papers(x64, x, percentile, least):
    scale = np.array([0.1, 1.0, 4.0]).reshape(COLUMN)
    limited = dynamic_threshold(_x0(lambda x: scale * x), percentile, least)(x, LEVEL)
    for i in range(3):
        x0 = scale[i] * x[i]
        s = max(np.quantile(np.abs(x0), percentile), least)
        np.testing.assert_allclose(limited.x0[i], np.clip(x0, -s, s) / s, rtol=1e-12)
    _consistent(limited, x, LEVEL)
    assert limited.aux == "its own"


@pytest.mark.parametrize("options", [{"percentile": 1.5}, {"percentile": -0.1}, {"least": 0.0}])
def test_thresholds_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="not"):
        dynamic_threshold(_x0(jnp.tanh), **options)


# The cached branch


def _run_cached(every, x, evaluations):
    conditional, w = _x0(jnp.tanh), 1.5

    def branch(x, level):
        jax.debug.callback(lambda: evaluations.append(1))
        return _x0(lambda x: jnp.cos(x + level.sigma))(x, level)

    build = lambda other: clip_x0(classifier_free(conditional, other, w))
    run = lambda x: sample(cached(ddim(), branch, build, every), build(branch), KEYS, x, GRID)
    result = jax.jit(run)(x)
    jax.effects_barrier()
    return result


def _by_hand(every, x):
    """Deterministic DDIM with guidance, in NumPy; the branch's x0 is that of the last step
    divisible by `every`."""
    for i in range(8):
        alpha, sigma = GRID.alpha[i], GRID.sigma[i]
        if i % every == 0 or i == 7:
            kept = np.cos(x + sigma)
        x0 = np.clip(2.5 * np.tanh(x) - 1.5 * kept, -1, 1)
        eps = (x - alpha * x0) / sigma
        x = x0 if i == 7 else GRID.alpha[i + 1] * x0 + GRID.sigma[i + 1] * eps
    return x


@pytest.mark.parametrize(("every", "times"), [(1, 7), (3, 3), (10, 1)])
def test_the_branch_is_evaluated_every_so_many_steps(x64, x, every, times):
    evaluations = []
    np.testing.assert_allclose(_run_cached(every, x, evaluations), _by_hand(every, x), rtol=1e-9)
    assert len(evaluations) == times + 1  # the last hop's


def test_a_stand_in_keeps_x0_at_every_level_that_the_sampler_asks_for(x64, x):
    asked = []

    def step(keys, denoiser, x, state, t, s):  # asks at both ends of the step
        for point, level in ((x, t), (2 * x, s)):
            asked.append((denoiser(point, level), point, level))
        return x, state + 1

    sampler = cached(
        ddim()._replace(init=lambda x, level: 5, step=step), _x0(jnp.tanh), lambda other: other, 2
    )
    state = sampler.init(x, LEVEL)
    _, state = sampler.step(KEYS, None, x, state, LEVEL, LEVEL._replace(sigma=0.5 * SIGMA))
    sampler.step(KEYS, None, x + 1, state, LEVEL, LEVEL)
    for prediction, point, level in asked:
        np.testing.assert_allclose(prediction.x0, np.tanh(x), rtol=1e-12)
        _consistent(prediction, point, level)
    assert state[0] == 6


def test_every_must_be_at_least_one():
    with pytest.raises(ValueError, match="every 1 or more"):
        cached(ddim(), _x0(jnp.tanh), lambda other: other, 0)


def test_a_cached_branch_rests_outside_of_its_interval():
    """Steps are counted within it, and the first of them evaluates the branch."""
    branch, build = _x0(lambda x: 0.0 * x + 7.0), lambda other: other
    sampler, x = cached(ddim(), branch, build, 2, interval=(0.5, 2.0)), jnp.ones((1, 3))
    state, seen = sampler.init(x, LEVELS[0]), []
    for t, s in itertools.pairwise(LEVELS):
        _, state = sampler.step(None, branch, x, state, t, s)
        seen.append((float(state[1][0, 0]), int(state[2])))
    assert seen == [(0.0, 0), (7.0, 1), (7.0, 2), (7.0, 2)]


# sigma / alpha: 4, 2, 1, 0.5, 0.1
LEVELS = [Level(0.0, 1.0, sigma) for sigma in (4.0, 2.0, 1.0, 0.5, 0.1)]
