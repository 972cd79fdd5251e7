"""Denoisers as arguments of jitted functions, and chains that are compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.denoisers import (
    autoguidance,
    classifier_free,
    classifier_guided,
    clip_x0,
    combined,
    dynamic_threshold,
    make_denoiser,
)

SIGMA = np.array([0.1, 0.6, 0.98], np.float32)
LEVEL = Level(np.array([3, 50, 98]), np.sqrt(1 - SIGMA**2), SIGMA)
X = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 3)
LABELS, OTHERS = np.array([1.0, 2.0, 0.0], np.float32), np.full(3, 3.0, np.float32)


class Network:
    """A network that notes the batch of every trace."""

    def __init__(self):
        self.traces = []

    def __call__(self, params, x, t, cond):
        self.traces.append(x.shape[0])
        shift = 0.01 * t if cond is None else 0.01 * t + cond
        return params["w"] * jnp.sin(x + shift[:, None, None, None])


@pytest.fixture
def network():
    return Network()


def _denoiser(network, w=0.7, cond=LABELS):
    return make_denoiser(network, {"w": jnp.float32(w)}, dj.predictions.v(), cond)


def _guided(d, w=2.0, **options):
    return classifier_free(d, d._replace(cond=OTHERS), w, **options)


LOG_PROB = lambda x, level: -jnp.sum(x**2, axis=(1, 2, 3))
DENOISERS = {
    "network": lambda d: d,
    "clipped": clip_x0,
    "threshold": dynamic_threshold,
    "guided": _guided,
    "rescaled in an interval": lambda d: clip_x0(_guided(d, interval=(0.2, 3.0), rescale=0.5)),
    "autoguided": lambda d: autoguidance(d, d._replace(params={"w": jnp.float32(0.3)}), LABELS),
    "classifier": lambda d: classifier_guided(d, LOG_PROB, 0.1),
    "function": lambda d: clip_x0(lambda x, level: d(x, level)),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_jitted_function_takes_a_denoiser_as_an_argument(network, name):
    denoiser = DENOISERS[name](_denoiser(network))
    expected = denoiser(X, LEVEL)
    run = jax.jit(lambda denoiser, x: denoiser(x, LEVEL))
    for found, value in zip(run(denoiser, X)[:2], expected[:2], strict=True):
        np.testing.assert_allclose(found, value, rtol=2e-5, atol=2e-5)
    copied = jax.tree.map(lambda a: a, denoiser)
    assert type(copied) is type(denoiser)
    np.testing.assert_array_equal(copied(X, LEVEL).x0, expected.x0)


def test_other_parameters_compile_nothing_anew(network):
    run = jax.jit(lambda denoiser, x: denoiser(x, LEVEL).x0)
    first, second = run(_denoiser(network), X), run(_denoiser(network, 0.2), X)
    assert network.traces == [3]
    assert not np.allclose(first, second)


@pytest.mark.parametrize("name", [name for name in DENOISERS if name != "function"])
@pytest.mark.parametrize("trajectory", [False, True])
def test_a_chain_is_compiled_once(network, name, trajectory):
    # as in the README: a denoiser made anew for every call
    grid = dj.respaced(dj.schedules.cosine(100), "4")
    for w in (0.7, 0.2, 0.5):
        denoiser = DENOISERS[name](_denoiser(network, w))
        dj.sample(dj.ddim(), denoiser, None, X, grid, trajectory)
        if w == 0.7:
            count = len(network.traces)
            assert count > 0
    assert len(network.traces) == count


def test_a_chain_in_a_jitted_function_and_one_of_a_function_are_the_same(network):
    grid, denoiser = dj.respaced(dj.schedules.cosine(100), "4"), _denoiser(network)
    found = dj.sample(dj.ancestral(), denoiser, KEYS, X, grid)
    jitted = jax.jit(lambda d: dj.sample(dj.ancestral(), d, KEYS, X, grid))(denoiser)
    function = dj.sample(dj.ancestral(), lambda x, level: denoiser(x, level), KEYS, X, grid)
    np.testing.assert_allclose(jitted, found, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(function, found, rtol=2e-5, atol=2e-5)


def test_a_denoiser_that_cannot_be_hashed_still_draws(network):
    grid = dj.respaced(dj.schedules.cosine(100), "3")
    clipped = clip_x0(_denoiser(network), np.full(2, -1.0), np.full(2, 1.0))
    assert np.abs(dj.sample(dj.ddim(), clipped, None, X, grid)).max() <= 1.0


# One network under jit


def test_branches_of_a_network_stay_one_as_an_argument(network):
    guided = _guided(_denoiser(network))
    assert len(jax.tree.leaves(guided)) == 1 + 2 + 2  # parameters, conditions, weights
    jax.jit(lambda guided: guided(X, LEVEL))(guided)
    assert network.traces == [6]


def test_a_gradient_through_guidance_counts_both_branches(x64):
    network = lambda params, x, t, cond: params["w"] * (x + cond[:, None, None, None])

    def guided(w):
        d = make_denoiser(network, {"w": w}, dj.predictions.x0(), LABELS.astype(float))
        return classifier_free(d, d._replace(cond=OTHERS.astype(float)), 2.0)

    loss = lambda g: jnp.sum(g(X.astype(float), LEVEL).x0)
    gradient = jax.grad(loss)(guided(1.5)).denoisers[0].params["w"]
    np.testing.assert_allclose(gradient, jax.grad(lambda w: loss(guided(w)))(1.5), rtol=1e-12)


# Any number


def test_any_number_of_branches_is_one_call_of_as_many_batches(network):
    d = _denoiser(network)
    branches = [d, d._replace(cond=OTHERS), d._replace(cond=-LABELS)]
    weights = (1.5, np.array([-1.0, 0.0, 2.0], np.float32), 0.25)
    found = combined(branches, weights)(X, LEVEL)
    assert network.traces == [9]
    apart = [branch(X, LEVEL) for branch in branches]
    column = lambda w: np.reshape(w, (-1, 1, 1, 1))
    for i in (0, 1):
        expected = sum(column(w) * p[i] for w, p in zip(weights, apart, strict=True))
        np.testing.assert_allclose(found[i], expected, rtol=1e-5, atol=1e-5)


def test_of_several_networks_each_is_called_once(network):
    strong, weak = _denoiser(network), _denoiser(network, 0.2)
    branches = [strong, weak, strong._replace(cond=OTHERS), weak._replace(cond=OTHERS)]
    found = combined(branches, (2.0, -1.0, 0.5, -0.5))(X, LEVEL)
    assert network.traces == [6, 6]
    expected = sum(
        w * b(X, LEVEL).x0 for w, b in zip((2.0, -1.0, 0.5, -0.5), branches, strict=True)
    )
    np.testing.assert_allclose(found.x0, expected, rtol=1e-5, atol=1e-5)


def test_one_weight_is_needed_for_each():
    with pytest.raises(ValueError, match="2 denoisers, not 1"):
        combined([_denoiser(Network()), _denoiser(Network())], [1.0])


@pytest.mark.parametrize("w", [2.0, np.array([0.3, 1.0, -0.5], np.float32)])
def test_classifier_free_guidance_has_the_bits_of_its_formula(network, w):
    d = _denoiser(network)
    u = d._replace(cond=OTHERS)

    def formula(x, level):
        g = jnp.reshape(jnp.asarray(w), (-1, 1, 1, 1) if np.ndim(w) else ())
        both = d._replace(cond=jnp.concatenate([LABELS, OTHERS]))
        twice = lambda a: jnp.concatenate([a, a])
        p = both(twice(x), Level(*map(twice, level)))
        return [(1 + g) * a[:3] - g * a[3:] for a in (p.x0, p.eps)]

    found = jax.jit(classifier_free(d, u, w))(X, LEVEL)
    for a, b in zip(found[:2], jax.jit(formula)(X, LEVEL), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("jitted", [False, True])
def test_outside_its_interval_the_conditional_alone_is_evaluated(jitted):
    evaluations = []

    def counted(name):
        def denoiser(x, level):
            jax.debug.callback(lambda: evaluations.append(name))
            level = level.expand(x.ndim)
            return Prediction(jnp.tanh(x), (x - level.alpha * jnp.tanh(x)) / level.sigma)

        return denoiser

    guided = classifier_free(counted("c"), counted("u"), 3.0, interval=(0.5, 2.0))
    run = lambda x, level: guided(x, level)[:2]
    run = jax.jit(run) if jitted else run
    ratio = lambda sigma: Level(jnp.float32(1.0), jnp.float32(1.0), jnp.asarray(sigma, jnp.float32))
    for sigma, expected in (
        (3.0, ["c"]),
        (1.0, ["c", "u"]),
        ([3.0, 4.0, 0.1], ["c"]),
        ([3.0, 1.0, 0.1], ["c", "u"]),
    ):
        evaluations.clear()
        jax.block_until_ready(run(X, ratio(sigma)))
        jax.effects_barrier()
        assert sorted(evaluations) == expected, sigma
