"""Consistency objectives on Gaussian data, of which the paths of the flow and so the minimisers are
known: with a deviation of s, f(x, t) = s (x / alpha) / sqrt(s^2 + (sigma / alpha)^2)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import problem
from tiny import tiny_config

from diffusion_jax.codecs import floats
from diffusion_jax.core import grids, predictions, schedules, timesteps
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import Prediction
from diffusion_jax.data.spec import Declared
from diffusion_jax.devices.flops import count
from diffusion_jax.objectives import OBJECTIVES, Context, denoising
from diffusion_jax.objectives.consistency import distances, neighbours, training_levels
from diffusion_jax.objectives.continuous_consistency import on_circle, tangent, velocity
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.training.state import init_state, warmed_up_ema
from diffusion_jax.training.step import make_train_step

DISCRETE = ("consistency_distillation", "consistency_training", "easy_consistency")
NAMES = (*DISCRETE, "continuous_consistency")
SCHEDULE = schedules.cosine_logsnr(-8.5, 12.0)
DEVIATION = 0.6
LEAST = np.exp(-6.0)  # sigma / alpha at t = 0, where f is x / alpha
ENDS = (LEAST, np.exp(4.25))


def points(**more):
    more = {"schedule": SCHEDULE, "parameterization": predictions.v()} | more
    codec = floats(Declared((2,), 0, None, "float32"))
    return problem((2,), codec=codec, entry="points", **more)


def exact(params, x, t, cond, dropout_key=None):
    """v of the posterior mean where k = 1, else of the function that is x / alpha where sigma /
    alpha is `least`; beside them what w says."""
    alpha, sigma = (a[:, None] for a in SCHEDULE.level(t)[1:])
    variance = (alpha * DEVIATION) ** 2 + sigma**2
    mean = alpha * DEVIATION**2 / variance * x
    end = jnp.hypot(DEVIATION, params["least"]) / jnp.sqrt(variance) * x
    x0 = params["k"] * mean + (1 - params["k"]) * end
    beside = params["w"][0] * alpha + params["w"][1] * sigma
    return (alpha * x - x0) / sigma + beside * x


STUDENT = {"k": np.float64(0), "least": LEAST, "w": np.zeros(2)}
TEACHER = STUDENT | {"k": np.float64(1)}


@pytest.fixture
def moments(monkeypatch):
    """A batch of 20 whose x0 and eps are every pair of signs at five t: what is quadratic in them
    has the mean of Gaussian ones."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=2)) * 5)
    eps = jnp.asarray(signs[:, 1:] * [1.0, -1.0])
    monkeypatch.setattr("diffusion_jax.objectives.objective.normal", lambda keys, shape: eps)
    return {"points": DEVIATION * signs[:, :1] * np.array([1.0, 1.0])}


def loss_of(objective, batch, step=0):
    """params -> (mean loss, report), at t = 0.3 ... 0.8."""
    keys = example_keys(jax.random.key(0), np.arange(20))
    t = jnp.repeat(jnp.linspace(0.3, 0.8, 5), 4)
    aux = objective.init(jax.random.key(1), TEACHER)

    def mean(params):
        context = Context(exact, params, step, keys, t, 1.0)
        losses, report = objective.loss(params, aux, context, batch)
        return losses.mean(), report

    return mean


def gradient(objective, batch, step=0, params=STUDENT):
    differentiated = jax.jit(jax.value_and_grad(loss_of(objective, batch, step), has_aux=True))
    (loss, report), g = differentiated(params)
    return float(loss), np.linalg.norm(g["w"]), report


@pytest.mark.parametrize(("solver", "order"), [("heun", 3), ("ddim", 2)])
def test_distillation_vanishes_at_the_minimiser_as_its_steps_do(x64, moments, solver, order):
    """The error of a step, of order p, is squared in the loss; the gradient goes with the error."""
    make = lambda levels: OBJECTIVES["consistency_distillation"](points(), levels, solver)
    (loss, slope, report), (finer, less, _) = (gradient(make(n), moments) for n in (400, 800))
    assert loss < 1e-7
    np.testing.assert_allclose(report["distance"].mean(), loss)
    assert np.log2(loss / finer) == pytest.approx(2 * order, abs=0.3)
    assert np.log2(slope / less) == pytest.approx(order, abs=0.3)
    _, wrong, _ = gradient(make(400), moments, params=TEACHER)
    assert slope < 0.05 * wrong


@pytest.mark.parametrize("name", ["consistency_training", "easy_consistency"])
def test_without_a_teacher_the_gradient_vanishes_at_the_minimiser_as_its_steps_do(
    x64, moments, name
):
    def make(halvings):
        if name == "consistency_training":
            number = 25 * 2**halvings
            return OBJECTIVES[name](points(), first=number, last=number, metric="l2"), 0
        return OBJECTIVES[name](points(), 10, huber=1e3, stages=20), 10 * (halvings + 1)

    slopes = [gradient(*(one := make(n))[:1], moments, one[1])[1] for n in (4, 5)]
    assert np.log2(slopes[0] / slopes[1]) == pytest.approx(1.0, abs=0.2)
    one = make(5)
    _, wrong, _ = gradient(one[0], moments, one[1], params=TEACHER)
    assert slopes[1] < 0.05 * wrong


@pytest.mark.parametrize("target", ["ema", "student"])
def test_the_target_is_whose_it_is_said_to_be(x64, moments, target):
    """With the averaged network elsewhere: what the target adds to f is in the loss, and f alone
    has a gradient."""
    made = OBJECTIVES["consistency_distillation"](points(), 400, "heun", target)
    keys, t = example_keys(jax.random.key(0), np.arange(20)), jnp.full(20, 0.5)

    def mean(params, average):
        context = Context(exact, average, 0, keys, t, 1.0)
        return made.loss(params, {"teacher": TEACHER}, context, moments)[0].mean()

    moved = STUDENT | {"w": np.array([0.3, 0.0])}
    from_average = jax.grad(mean, argnums=1)(STUDENT, moved)
    assert np.linalg.norm(from_average["w"]) == 0.0
    loss = float(mean(STUDENT, moved))
    assert loss > 1e-3 if target == "ema" else loss < 1e-7


def test_levels_are_the_neighbours_on_karras_grid_and_the_levels_double():
    grid = grids.karras(SCHEDULE, 9)
    u = np.asarray(grid.sigma / grid.alpha, np.float64)[::-1]  # ascending
    between = np.sqrt(u[1:] * u[:-1])
    drawn = grids.at_logsnr(SCHEDULE, -2 * np.log(between))
    t, s, ends = neighbours(SCHEDULE, drawn, 9, 7.0, ENDS)
    np.testing.assert_allclose(t.sigma / t.alpha, u[1:], rtol=2e-3)
    np.testing.assert_allclose(s.sigma / s.alpha, u[:-1], rtol=2e-3)
    np.testing.assert_array_equal(ends, np.arange(8) == 0)
    # the paper's, written out: s0 = 10, s1 = 1280 and K = 800,000 double every 100,000 steps
    for step, expected in [(0, 11), (99_999, 11), (100_000, 21), (699_999, 641), (799_999, 1281)]:
        assert float(training_levels(step, 800_000, 10, 1280)) == expected


def test_drawn_by_karras_every_interval_is_met_as_often():
    t, _ = timesteps.karras(SCHEDULE).sample((), jax.random.key(0), np.arange(8000), 8000)
    top, _, _ = neighbours(SCHEDULE, SCHEDULE.level(t), 9, 7.0, ENDS)
    counts = np.unique(np.round(np.log(top.sigma / top.alpha), 2), return_counts=True)[1]
    np.testing.assert_allclose(counts, 1000, atol=4 * np.sqrt(1000))


def test_distances_are_their_formulas():
    a, b = np.random.default_rng(0).normal(size=(2, 3, 5))
    square = ((a - b) ** 2).sum(1)
    c = 0.1 * np.sqrt(5)
    expected = {
        "l2": square / 5,
        "l1": np.abs(a - b).mean(1),
        "huber": (np.sqrt(square + c**2) - c) / np.sqrt(5),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(distances(name, 0.1)(a, b), value, rtol=1e-5)


@pytest.mark.parametrize(("step", "a"), [(0, 1), (6, 1), (14, 3), (700, 8)])
def test_easy_consistency_is_its_paper_written_out(x64, moments, step, a):
    """r / t = 1 - (1 + 8 sigmoid(-t)) / 2^a, at least 0, and the distance over t - r."""
    made = OBJECTIVES["easy_consistency"](points(), stage_steps=7, huber=0.01)
    losses, report = loss_of(made, moments, step)(TEACHER)
    level = SCHEDULE.level(np.repeat(np.linspace(0.3, 0.8, 5), 4))
    t = np.asarray(level.sigma / level.alpha)
    r = t * np.maximum(1 - (1 + 8 / (1 + np.exp(t))) / 2**a, 0)
    x0 = moments["points"]
    eps = np.array(list(itertools.product((1.0, -1.0), repeat=2)) * 5)[:, 1:] * [1.0, -1.0]
    mean = lambda u: DEVIATION**2 / (DEVIATION**2 + u**2)[:, None] * (x0 + u[:, None] * eps)
    far = np.where((r > LEAST)[:, None], mean(r), x0)
    square = ((mean(t) - far) ** 2).mean(1)
    np.testing.assert_allclose(report["distance"], square, rtol=1e-6)
    expected = (np.sqrt(square + 1e-4) - 0.01) / (t - r)
    np.testing.assert_allclose(losses, expected.mean(), rtol=1e-6)


# In continuous time

PROCESSES = {
    "cosine_logsnr": SCHEDULE,
    "cosine": schedules.cosine(1000),
    "edm": schedules.edm(),
    "rectified_flow": schedules.rectified_flow(),
}


def wavy(x, level):
    """A denoiser of no particular data, which looks at all that it is given."""
    level = level.expand(x.ndim)
    t = level.t / (1.0 + level.t)
    x0 = jnp.tanh(x / level.alpha * jnp.cos(t)) + jnp.sin(level.sigma + t) * x
    return Prediction(x0, None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", PROCESSES)
def test_the_tangent_is_the_derivative_of_f_along_the_path(x64, name):
    """By central differences in theta, of f at x + slope d theta."""
    schedule, sigma_data, h = PROCESSES[name], 0.5, 1e-6
    x, slope = np.random.default_rng(0).normal(size=(2, 4, 3))
    logsnr = np.array([3.1, 0.7, -1.3, -4.2])
    theta = np.arctan(np.exp(-logsnr / 2) / sigma_data)[:, None]
    F = velocity(wavy, schedule, sigma_data)

    def end(theta, x):
        return np.cos(theta) * x - np.sin(theta) * F(
            x, -2 * jnp.log(sigma_data * jnp.tan(theta[:, 0]))
        )

    change = (end(theta + h, x + h * slope) - end(theta - h, x - h * slope)) / (2 * h)
    cos, sin, _ = on_circle(logsnr, schedule, sigma_data, 2)
    np.testing.assert_allclose(sin / cos, np.tan(theta))
    here, g = tangent(F, x, jnp.asarray(logsnr), slope, cos, sin, 1.0)
    np.testing.assert_allclose(g, np.cos(theta) * change, rtol=1e-5, atol=1e-7)
    _, g = tangent(F, x, jnp.asarray(logsnr), slope, cos, sin, 0.0)
    np.testing.assert_allclose(g, -(np.cos(theta) ** 2) * (here - slope), rtol=1e-9)


def test_continuous_distillation_is_at_rest_at_the_minimiser(x64, moments):
    """There f is x at sigma = 0, not at the schedule's least."""
    made = OBJECTIVES["continuous_consistency"](points(), warmup=0)
    _, slope, report = gradient(made, moments, params=STUDENT | {"least": np.float64(0)})
    assert np.max(report["distance"]) < 1e-20
    assert slope < 1e-8
    _, wrong, report = gradient(made, moments, params=TEACHER)
    assert np.min(report["distance"]) > 1e-3
    assert wrong > 0.05


def test_continuous_training_has_the_gradient_of_distillation(x64, moments):
    """In the mean over data and noise, where the tangent is hardly divided by its own norm."""
    both = {
        path: gradient(
            OBJECTIVES["continuous_consistency"](points(), path, 0, 1e6), moments, params=TEACHER
        )[1]
        for path in ("teacher", "data")
    }
    assert both["data"] == pytest.approx(both["teacher"], rel=1e-6) and both["data"] > 0


def test_the_tangents_second_term_comes_in_by_steps_of_training(x64, moments):
    made = OBJECTIVES["continuous_consistency"](points(), warmup=100)
    first, half, whole, more = (
        np.asarray(gradient(made, moments, step, TEACHER)[2]["distance"])
        for step in (0, 50, 100, 300)
    )
    assert np.all(first < 1e-9)  # the teacher's own F less its slope
    np.testing.assert_allclose(half, whole / 4, rtol=1e-6)
    np.testing.assert_array_equal(whole, more)


# Any of them


def feature_network(params, x, t, cond, dropout_key=None):
    """v = x times a polynomial of the angle; zeros are the mean of N(0, 1) data."""
    return jnp.polyval(params["w"], jnp.pi / 2 * t)[:, None] * x


REACHED = {
    "consistency_distillation": {"levels": 40, "target": "student"},
    "consistency_training": {"steps": 1000, "first": 10, "last": 160, "metric": "l2"},
    "easy_consistency": {"stage_steps": 125, "q": 2.0, "huber": 1.0},
    "continuous_consistency": {"warmup": 100},
    "continuous_consistency data": {"path": "data", "warmup": 100},
}


@pytest.mark.parametrize("name", REACHED)
def test_a_linear_network_trained_by_it_becomes_the_consistency_function(name):
    """Of N(0, 1) data a path stays where it is in variance: f(x, theta) = cos(theta) x -
    sin(theta) v = x, where the posterior mean is cos(theta) x."""
    drawn = timesteps.uniform(SCHEDULE)
    objective = OBJECTIVES[name.split()[0]](points(distribution=drawn), **REACHED[name])
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1000))
    step = make_train_step(objective, feature_network, optimizer, warmed_up_ema(0.99))
    params = {"w": jnp.zeros(5)}
    state = init_state(params, optimizer, aux=objective.init(jax.random.key(0), params))

    @jax.jit
    def train(state):
        def one(state, key):
            batch = {"points": jax.random.normal(key, (256, 2))}
            return step(state, jax.random.key(7), batch)[0], None

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(1), 1000))[0]

    t = jnp.linspace(0.05, 1.0, 20)
    v = feature_network(train(state).params, jnp.ones((20, 1)), t, {})[:, 0]
    theta = np.pi / 2 * t
    np.testing.assert_allclose(np.cos(theta) - np.sin(theta) * v, 1.0, atol=0.05)


@pytest.mark.parametrize(
    ("name", "settings", "forwards"),
    [
        ("consistency_distillation", {"solver": "ddim"}, 2),
        ("consistency_distillation", {"solver": "heun"}, 3),
        ("consistency_training", {}, 1),
        ("easy_consistency", {}, 1),
        ("continuous_consistency", {}, 2),  # the derivative is one, the teacher another
        ("continuous_consistency", {"path": "data"}, 1),
    ],
)
def test_beside_denoisings_forward_and_backward_there_are_as_many_forwards(
    name, settings, forwards
):
    params = {"a": jnp.zeros((2, 64)), "b": jnp.zeros((64, 2))}
    seen = []

    def network(params, x, t, cond, dropout_key=None):
        seen.append(dropout_key)
        return jnp.tanh(x @ params["a"] + t[:, None]) @ params["b"]

    def flops(objective):
        aux = objective.init(jax.random.key(0), params)
        keys = example_keys(jax.random.key(0), np.arange(8))
        batch = {"points": jnp.ones((8, 2))}

        def mean(params, average):
            context = Context(network, average, 5, keys, jnp.full(8, 0.5), 1.0, "mask")
            return objective.loss(params, aux, context, batch)[0].mean()

        return count(jax.make_jaxpr(jax.grad(mean))(params, params)).flops

    one = count(jax.make_jaxpr(network)(params, jnp.ones((8, 2)), jnp.ones(8), {}, None)).flops
    seen.clear()
    more = flops(OBJECTIVES[name](points(), **settings)) - flops(denoising(points()))
    weight = 2 * 8 * 128 if "continuous" in name else 0  # 8 examples' product with Fourier features
    assert (more - weight) / one == forwards
    # the same units are dropped on both sides, and none of the teacher's
    teaches = "distillation" in name or ("continuous" in name and not settings)
    assert set(seen) == ({"mask", None} if teaches else {"mask"})


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_a_consistency_model_is_refused(name):
    for prediction in (predictions.v, predictions.eps, predictions.score, predictions.edm):
        OBJECTIVES[name](points(parameterization=prediction()))
    OBJECTIVES[name](points(parameterization=predictions.flow()))
    table = schedules.cosine(100)
    for wrong in (predictions.x0(), predictions.mean(table)):
        with pytest.raises(ValueError, match=r"which (x0|mean)\(.*does not see to; take v, eps"):
            OBJECTIVES[name](points(parameterization=wrong, schedule=table))
    with pytest.raises(ValueError, match="consistency has its own"):
        OBJECTIVES[name](points(weighting=lambda level: 1.0))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("consistency_distillation", {"levels": 1}, "levels must be at least 2, not 1"),
        (
            "consistency_distillation",
            {"guidance": 1.0},
            "the teacher is guided away from no condition",
        ),
        ("consistency_distillation", {"solver": "euler"}, "solver is one of heun, ddim"),
        ("consistency_distillation", {"most": 0.002}, "cleanest sigma / alpha is 0.00248, not"),
        ("consistency_training", {"last": 5}, "last must be at least 10, not 5"),
        ("easy_consistency", {"q": 1.0}, "q must be above 1, not 1.0"),
        ("continuous_consistency", {"c": 0.0}, "c must be above 0, not 0.0"),
        ("continuous_consistency", {"path": "flow"}, "path is one of teacher, data"),
    ],
)
def test_settings_out_of_range(name, settings, message):
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name](points(), **settings)


@pytest.mark.parametrize("name", NAMES)
def test_levels_of_pure_noise_are_finite(name):
    """A flow that begins at alpha = 0."""
    schedule = schedules.rectified_flow(t_max=1.0)
    made = OBJECTIVES[name](points(schedule=schedule, parameterization=predictions.flow()))
    params, keys = {"w": jnp.float32(0.5)}, example_keys(jax.random.key(0), np.arange(3))
    network = lambda params, x, t, cond, dropout_key=None: params["w"] * x
    context = Context(network, params, 20_000, keys, jnp.array([1e-3, 0.5, 1.0]), 1.0)
    aux = made.init(jax.random.key(0), params)

    def loss(params):
        return made.loss(params, aux, context, {"points": jnp.ones((3, 2))})[0].sum()

    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value) and np.isfinite(slope["w"])


def test_the_derivative_passes_through_attention_and_dropout():
    """Traced alone: the gradient of a loss that holds a forward derivative."""
    config = tiny_config()
    config.diffusion.timesteps, config.diffusion.loss = "uniform", "continuous_consistency"
    config.model = use("dit", width=32, depth=1, heads=2, patch=4, dropout=0.1)
    parts = build(config)
    params = jax.eval_shape(parts.init_params, jax.random.key(0))

    def loss(params):
        keys = example_keys(jax.random.key(0), np.arange(2))
        t, mask = jnp.array([3, 9]), jax.random.key(1)
        context = Context(parts.apply_fn, params, 5, keys, t, 1.0, mask)
        batch = {"image": jnp.zeros((2, 8, 8, 1), jnp.uint8), "label": jnp.zeros(2, int)}
        aux = parts.objective.init(jax.random.key(0), params)
        return parts.objective.loss(params, aux, context, batch)[0].sum()

    found = jax.eval_shape(jax.grad(loss), params)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
