"""Laws of every sampler. A new entry of SAMPLERS is held to them, and to the order that its
docstring states."""

import functools
import inspect
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from chains import KEY, SHAPE, gaussian, moments, wavy

from diffusion_jax.core import grids
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.core.types import Level
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.samplers import (
    SAMPLERS,
    adaptive_ode,
    ancestral,
    annealed_langevin,
    ddim,
    dpmpp_2m_sde,
    draws_noise,
    edm_churn,
    sample,
)

# Every sampler at its defaults, and the settings that change the law of its result.
CASES = {
    **{name: factory() for name, factory in SAMPLERS.items()},
    "ancestral fixed_large": ancestral("fixed_large"),
    "ddim eta=0.5": ddim(0.5),
    "edm_churn gamma=0": edm_churn(0.0),
    "annealed_langevin size=0.6": annealed_langevin(0.6),
    "dpmpp_2m_sde heun": dpmpp_2m_sde("heun"),
}
# Of how many steps, and of half as many, the error shows the order
STEPS = dict.fromkeys(SAMPLERS, 200) | {"lms": 400}
# Tolerances of its own choice, not steps, decide how far an adaptive method is off
ADAPTIVE = [
    name for name in CASES if "adaptive" in SAMPLERS[name.split()[0]].__doc__.split("\n\n")[0]
]
TOLERANCE = {name: {"rtol": 1e-5, "atol": 1e-6} for name in CASES} | {
    name: {"atol": 1e-3} for name in ADAPTIVE
}

MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))


def _summary(name):
    """The docstring's first paragraph, in one line."""
    return " ".join(SAMPLERS[name].__doc__.split("\n\n")[0].split())


def _order(name):
    """(the order stated in the docstring's first sentence, whether it is a weak one), None for
    none."""
    found = re.search(r"(weakly )?of order (\d)", _summary(name.split()[0]))
    return found and (int(found[2]), bool(found[1]))


def _draws(name):
    """How often a step draws noise."""
    counted = []

    def normal(keys, shape):
        counted.append(shape)
        return jnp.zeros((3, *shape))

    def step(keys, x):
        t, s = Level(0.6, 0.6, 0.8), Level(0.3, 0.8, 0.6)
        return CASES[name].step(keys, wavy, x, CASES[name].init(x, t), t, s)

    with mock.patch("diffusion_jax.core.noise.normal", normal):
        jax.eval_shape(step, jax.random.split(KEY, 3), jnp.zeros((3, 2)))
    return len(counted)


STOCHASTIC = [name for name in CASES if _draws(name)]
DETERMINISTIC = [name for name in CASES if name not in STOCHASTIC and name not in ADAPTIVE]


def test_every_docstring_names_its_source_and_its_order():
    for name in SAMPLERS:
        summary = _summary(name)
        assert re.search(r"et al\. 20\d\d|& \w+ 20\d\d", summary), f"{name} names no paper"
        assert re.search(r"of order \d|of no order", summary), f"{name} states no order"


# The probability-flow ODE


@functools.cache
def _flow(name):
    """(x_init, the x0 that the ODE of the mixture takes it to) on a schedule, by SciPy in x / alpha
    over log(sigma / alpha)."""
    schedule = SCHEDULES[name]()
    first, last = (
        Level(*(float(a) for a in schedule.level(t))) for t in (schedule.t_max, schedule.t_min)
    )
    x_init = np.hypot(first.alpha, first.sigma) * np.random.default_rng(0).normal(size=(8, 2))

    def clean(y, u):  # E[x0 | y], y = x0 + u eps, in NumPy
        variance = MIXTURE.stds**2 + u**2
        offset = y[:, None] - MIXTURE.means
        joint = np.log(MIXTURE.weights / variance) - (offset**2).sum(-1) / (2 * variance)
        share = np.exp(joint - joint.max(1, keepdims=True))
        share = (share / share.sum(1, keepdims=True))[..., None]
        return (share * (MIXTURE.means + (MIXTURE.stds**2 / variance)[:, None] * offset)).sum(1)

    slope = lambda log_u, y: y - clean(y.reshape(8, 2), np.exp(log_u)).ravel()
    ends = [np.log(level.sigma / level.alpha) for level in (first, last)]
    solution = scipy.integrate.solve_ivp(
        slope, ends, (x_init / first.alpha).ravel(), "DOP853", rtol=1e-11, atol=1e-11
    )
    return x_init, clean(solution.y[:, -1].reshape(8, 2), np.exp(ends[1]))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_samplers_follow_the_flow_at_their_order_on_every_schedule(x64, name):
    chain = jax.jit(lambda x, grid: sample(CASES[name], MIXTURE.denoiser, None, x, grid))
    order, weak = _order(name)
    assert not weak
    for schedule in SCHEDULES:
        x_init, expected = _flow(schedule)
        errors = []
        for num_steps in (STEPS[name] // 2, STEPS[name]):
            found = chain(x_init, grids.logsnr(SCHEDULES[schedule](), num_steps + 1))
            errors.append(np.sqrt(np.mean((found - expected) ** 2)))
        assert errors[1] < 0.03, schedule
        np.testing.assert_allclose(
            np.log2(errors[0] / errors[1]), order, atol=0.4, err_msg=schedule
        )


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_samplers_follow_the_flow_to_their_tolerance_on_every_schedule(x64, name):
    for tolerance in (1e-3, 1e-7):
        sampler = adaptive_ode(tolerance, tolerance)
        chain = jax.jit(
            lambda x, grid, sampler=sampler: sample(sampler, MIXTURE.denoiser, None, x, grid)
        )
        for schedule in SCHEDULES:
            x_init, expected = _flow(schedule)
            found = chain(x_init, grids.logsnr(SCHEDULES[schedule](), 2))
            np.testing.assert_allclose(found, expected, atol=20 * tolerance, err_msg=schedule)


# Noise


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if _order(name)])
def test_gaussian_data_are_reached_at_the_samplers_order(injected, x64, continuous, name):
    mean, std = 0.3, 0.5
    last = continuous.level(continuous.t_min)
    # an endless grid keeps the marginal down to t_min, and the last hop takes the posterior's mean
    expected = last.alpha * std**2 / jnp.sqrt(last.alpha**2 * std**2 + last.sigma**2)
    errors = []
    for steps in (128, 256):
        means, stds = moments(
            injected, CASES[name], grids.uniform(continuous, steps + 1), mean, std, _draws(name)
        )
        errors.append([abs(means[-1] - mean), abs(float(stds[-1] - expected))])
    assert max(errors[1]) < 0.02
    for coarse, fine in np.transpose(errors):
        # most have no error of the mean at all
        assert coarse < 1e-9 or abs(np.log2(coarse / fine) - _order(name)[0]) < 0.2


# At its defaults annealed Langevin lags behind 400 levels of this mixture: the deviations come out
# a tenth too large. Those of consistency models take x0 for the end of the path, which a mean is
# not.
UNLIKE = ("annealed_langevin", "consistency", "tcd")


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name not in UNLIKE])
def test_stochastic_samplers_reach_the_mixture_each_sample_by_its_own_key(name):
    # a million steps: to compile them better pays, unlike elsewhere in the tests
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def chain(index, grid):
        keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(index)
        x_init = jnp.sqrt(grid.alpha[0] ** 2 + grid.sigma[0] ** 2) * jax.vmap(
            lambda k: jax.random.normal(k, (2,))
        )(keys)
        return sample(CASES[name], MIXTURE.denoiser, keys, x_init, grid)

    every = ("vp", "linear", "rectified_flow", "ve")  # in turn
    own = (every[0 if name.startswith("annealed") else STOCHASTIC.index(name) % 4],)
    for schedule in own:
        grid = Level(*map(jnp.float32, grids.uniform(SCHEDULES[schedule](), 400)))
        x0 = np.asarray(chain(np.arange(2500), grid))
        if schedule == own[0]:  # sample i is the same in any batch
            other = np.asarray(chain(np.arange(100, 2600), grid))
            np.testing.assert_allclose(other[:-100], x0[100:], rtol=1e-5, atol=1e-6)
            assert len(np.unique(x0, axis=0)) == len(x0)
        first = x0[:, 0] < -0.1  # three deviations from either mean
        share, weights = first.mean(), MIXTURE.weights
        np.testing.assert_allclose(
            share, weights[0], atol=4 * np.sqrt(weights[0] * weights[1] / len(x0)), err_msg=schedule
        )
        for part, mean, std in zip(
            (x0[first], x0[~first]), MIXTURE.means, MIXTURE.stds, strict=True
        ):
            np.testing.assert_allclose(
                part.mean(axis=0), mean, atol=4 * std / np.sqrt(len(part)), err_msg=schedule
            )
            # 400 steps of order 1 leave up to 3 % on top of the sampling error
            rtol = 0.03 + 4 / np.sqrt(2 * len(part))
            np.testing.assert_allclose(part.std(axis=0), std, rtol=rtol, err_msg=schedule)


# Every sampler


@pytest.mark.parametrize("name", CASES)
def test_data_of_one_point_are_found_exactly(noise_by_index, x64, continuous, name):
    point = np.random.default_rng(0).normal(size=(2, 2, 1))
    x_init = np.random.default_rng(1).normal(size=(3, 2, 2, 1))
    grid = grids.uniform(continuous, 5)
    chain = lambda x: sample(
        CASES[name], gaussian(point, 0.0), np.arange(3), x, grid, trajectory=True
    )
    x0, path = jax.jit(chain)(x_init)
    np.testing.assert_allclose(x0, np.broadcast_to(point, x_init.shape), rtol=1e-10)
    if name in DETERMINISTIC:  # along the flow the noise stays what it is
        alpha, sigma = (np.reshape(a, (5, 1, 1, 1, 1)) for a in (grid.alpha, grid.sigma))
        noise = (path.x[:-1] - alpha * point) / sigma
        np.testing.assert_allclose(
            noise, np.broadcast_to(noise[0], noise.shape), rtol=1e-8, atol=1e-9
        )


@pytest.mark.parametrize("name", ["ancestral", "unipc", "pndm", "restart"])
def test_a_steps_jit_is_eager(noise_by_index, name):
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 3))
    t, s = Level(60, 0.6, 0.8), Level(30, 0.8, 0.6)
    state = CASES[name].init(x, t)
    step = lambda keys, x, state, t, s: CASES[name].step(keys, wavy, x, state, t, s)[0]
    eager, jitted = (f(np.arange(3), x, state, t, s) for f in (step, jax.jit(step)))
    np.testing.assert_allclose(jitted, eager, **TOLERANCE[name])


@pytest.mark.parametrize("name", CASES)
def test_levels_and_shapes_are_each_examples_own(noise_by_index, name):
    """A batch of points at levels of their own, and each example by itself, shaped as a video at
    one level."""
    x = np.random.default_rng(0).normal(size=(3, 12))
    angle = np.array([[0.2, 0.9, 1.5], [0.1, 0.8, 0.4]])
    t, s = (Level(np.arange(3), np.cos(a), np.sin(a)) for a in angle)
    init, step = CASES[name].init, CASES[name].step
    run = jax.jit(lambda keys, x, t, s: step(keys, wavy, x, init(x, t), t, s))
    together, state = run(np.arange(3), x, t, s)
    assert together.shape == x.shape
    assert jax.tree.structure(state) == jax.tree.structure(init(x, t))
    for i in range(3):
        levels = (Level(*(a[i] for a in level)) for level in (t, s))
        alone, _ = run(np.array([i]), x[i].reshape(1, 2, 2, 1, 3), *levels)
        bound = TOLERANCE[name]
        rounding = {"atol": bound["atol"] * max(1.0, float(np.abs(together[i]).max()))}
        np.testing.assert_allclose(together[i], alone.ravel(), **bound | rounding)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "unipc", "pndm"])
def test_a_grid_of_one_level_returns_the_denoisers_x0(noise_by_index, name):
    grid = Level(np.array([99]), np.array([0.1]), np.array([0.99]))
    x_init = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    chain = lambda x: sample(CASES[name], wavy, np.arange(3), x, grid, trajectory=True)
    x0, path = jax.jit(chain)(x_init)
    assert path.x.shape == (2, *x_init.shape)
    assert path.x0.shape == (1, *x_init.shape)
    np.testing.assert_allclose(x0, np.tanh(x_init + np.cos(9.9)), rtol=1e-5)
    np.testing.assert_array_equal(path.x[0], x_init)
    np.testing.assert_array_equal(path.x[1], x0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_precision_of_x_is_sampled(noise_by_index, name):
    grid = grids.logsnr(SCHEDULES["vp"](), 4)
    draw = lambda x: jax.eval_shape(
        lambda x: sample(CASES[name], MIXTURE.denoiser, np.arange(3), x, grid), x
    )
    x = np.ones((3, 2))
    assert draw(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert draw(np.float32(x)).dtype == jnp.float32
        assert draw(x).dtype == jnp.float64


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_flow_may_begin_at_alpha_0(noise_by_index, name):
    grid = grids.uniform(SCHEDULES["rectified_flow"](t_max=1.0), 6)
    network = lambda params, x, t, cond: jnp.tanh(x) * t[:, None]
    denoiser = make_denoiser(network, None, PREDICTIONS["flow"]())
    x0 = jax.jit(lambda x: sample(CASES[name], denoiser, np.arange(3), x, grid))(
        np.random.default_rng(0).normal(size=(3, 2))
    )
    assert np.all(np.isfinite(x0))


BETWEEN = [name for name, f in SAMPLERS.items() if "schedule" in inspect.signature(f).parameters]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [(name, ("linear", "edm", "rectified_flow")[i % 3]) for i, name in enumerate(BETWEEN)],
)
def test_levels_between_those_of_the_grid_have_the_schedules_t(noise_by_index, x64, name, schedule):
    schedule = SCHEDULES[schedule]()

    def network(params, x, t, cond):  # an exact denoiser that knows its level by t alone
        return MIXTURE.denoiser(x, schedule.level(t)).x0

    by_t = make_denoiser(network, None, PREDICTIONS["x0"]())
    grid, x_init = grids.logsnr(schedule, 8), np.random.default_rng(0).normal(size=(3, 2))
    sampler = SAMPLERS[name](schedule=schedule)
    run = lambda denoiser: jax.jit(lambda x: sample(sampler, denoiser, np.arange(3), x, grid))(
        x_init
    )
    np.testing.assert_allclose(run(by_t), run(MIXTURE.denoiser), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_whether_noise_is_drawn_is_known(name):
    assert draws_noise(CASES[name]) == (name in STOCHASTIC)


def test_the_number_of_keys_is_that_of_the_examples():
    grid, x = grids.logsnr(SCHEDULES["vp"](), 3), np.zeros((3, 2))
    for keys in (KEY, KEY[None], jax.random.split(KEY, 4)):
        with pytest.raises(ValueError, match="one key is needed for each of 3"):
            sample(ancestral(), wavy, keys, x, grid)
    with pytest.raises(ValueError, match="keys are needed"):
        sample(ancestral(), wavy, None, x, grid)
