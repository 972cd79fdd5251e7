"""MeanFlow, shortcut models and reflow, held to Gaussian data, whose flow map is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flows import average_velocity, data, exact, problem, right, second_of

from diffusion_jax.core import predictions, schedules, timesteps
from diffusion_jax.core.noise import example_keys, fold_in, normal
from diffusion_jax.devices import flops
from diffusion_jax.objectives import Context, flow_maps, mean_flow, reflow, shortcut
from diffusion_jax.training.state import init_state, warmed_up_ema
from diffusion_jax.training.step import make_train_step

MEANS = {"mean flow": False, "improved": True}


def context(count, network, params=None, seed=3, **more):
    """Of examples whose t are those of the problem's distribution."""
    keys = example_keys(jax.random.key(seed), np.arange(count))
    t, weights = problem().timesteps.sample((), jax.random.key(seed), np.arange(count), count)
    return Context(network, params, 0, keys, t, weights, **more)


def running(objective, batch, network=exact, ema=None):
    """params -> (losses [B], report, the gradient of every loss by its parameters [B, ...])."""
    aux = objective.init(jax.random.key(0), ())

    @jax.jit
    def run(params):
        given = context(len(batch["image"]), network, params if ema is None else ema)

        def losses(params):
            losses, report = objective.loss(params, aux, given, batch)
            return losses, (losses, report)

        each, (values, report) = jax.jacrev(losses, has_aux=True)(params)
        return values, report, each

    return run


OBJECTIVES = {
    "mean flow": functools.partial(mean_flow, power=0.0, moving=0.5),
    "improved": functools.partial(mean_flow, power=0.0, moving=0.5, improved=True),
    "shortcut": functools.partial(shortcut, share=0.5),
}


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("mean flow", "flow"), ("improved", "x0"), ("shortcut", "flow")],
)
def test_of_one_point_the_loss_and_its_gradient_vanish_at_the_flow_map(x64, name, prediction):
    """With the prediction x0 as well, of which u is (x - x0) / t."""

    def network(params, x, t, cond, dropout_key=None):
        u = exact(params, x, t, cond)
        return u if prediction == "flow" else x - t[:, None] * u

    one = problem(parameterization=predictions.PREDICTIONS[prediction]())
    run = running(OBJECTIVES[name](one), data(64, std=0.0), network)
    losses, _, each = run(right(std=0.0))
    np.testing.assert_allclose(losses, 0, atol=1e-20)
    for parameter in ("a", "b"):
        np.testing.assert_allclose(each[parameter], 0, atol=1e-9)
    wrong = run(right(std=0.0) | {"b": jnp.array(0.1)})[0]
    assert np.all(wrong > 1e-7) and wrong.mean() > 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_of_gaussian_data_the_mean_gradient_vanishes_at_the_flow_map(x64, name):
    run = running(OBJECTIVES[name](problem()), data(4000))
    _, report, each = run(right())
    for g in (each["a"], each["b"]):
        assert abs(g.mean()) < 4 * g.std() / np.sqrt(len(g))
    if name == "shortcut":  # two halves of an exact map are the whole
        assert report["self_loss"].mean() < 1e-5 < 1e-2 < report["v_loss"].mean()
    # E ||eps - x0 - v||^2 = Var(eps - x0 | x), the v-loss of a perfect network
    t = np.asarray(flow_maps.two_times(problem(), {"timesteps": ()}, context(4000, None), 0.5)[0])
    if name != "shortcut":
        variance = 0.25 / ((1 - t) ** 2 * 0.25 + t**2)
        np.testing.assert_allclose(report["v_loss"].mean(), variance.mean(), rtol=0.1)
    wrong = run(right() | {"a": jnp.array(1.3)})[2]["a"]
    assert wrong.mean() > 8 * wrong.std() / np.sqrt(len(wrong))


def curved(params, x, t, cond, dropout_key=None):
    """A network of no particular data."""
    h = x @ params["w"] + jnp.sin(3 * t)[:, None] + jnp.cos(second_of(cond))[:, None] * x
    if "label" in cond:
        h += 0.3 * cond["label"][:, None]
    return jnp.tanh(h) + 0.1 * h**2


WEIGHTS = {"w": jnp.array(np.random.default_rng(1).normal(size=(3, 3)))}


def drawn(one, count, moving):
    """(x0, eps, t, r) of `context`'s examples, in NumPy."""
    batch, given = data(count, size=3), context(count, None)
    t, r = (np.array(a) for a in flow_maps.two_times(one, {"timesteps": ()}, given, moving))
    return batch, np.array(normal(fold_in(given.keys, 0), (3,))), t, r


@pytest.mark.parametrize("name", MEANS)
def test_the_derivative_agrees_with_finite_differences(x64, name):
    one = problem((3,))
    batch, eps, t, r = drawn(one, 8, 0.9)
    assert 5 < (r < t).sum() < 8 + (t == r).all()
    x0, column = batch["image"], (lambda a: np.reshape(a, (-1, 1)))
    x, v = (1 - column(t)) * x0 + column(t) * eps, eps - x0

    def u(x, t, r):
        told = one.conditioner.example(len(x))
        angle = np.arctan2(r, 1 - r) * 2
        told["second_time"] = told["second_time"].at[:, 0].set(np.cos(angle))
        told["second_time"] = told["second_time"].at[:, 8].set(np.sin(angle))
        return np.asarray(curved(WEIGHTS, jnp.asarray(x), jnp.asarray(t), told))

    along = u(x, t, t) if MEANS[name] else v
    h = 1e-5
    change = (u(x + h * along, t + h, r) - u(x - h * along, t - h, r)) / (2 * h)
    errors = ((u(x, t, r) + column(t - r) * change - v) ** 2).sum(axis=1)
    options = {"improved": MEANS[name], "moving": 0.9}
    plainly = running(mean_flow(one, power=0.0, **options), batch, curved)(WEIGHTS)
    np.testing.assert_allclose(plainly[0], errors, rtol=1e-7)
    # and the weighted loss, whose gradient is that of the error over its own size
    weighted = mean_flow(one, power=0.75, constant=0.01, **options)
    losses, report, each = running(weighted, batch, curved)(WEIGHTS)
    np.testing.assert_allclose(losses, errors / (errors + 0.01) ** 0.75, rtol=1e-7)
    plain = plainly[2]["w"]
    weight = (errors + 0.01) ** -0.75
    np.testing.assert_allclose(each["w"], weight[:, None, None] * plain, rtol=1e-6)
    if MEANS[name]:
        np.testing.assert_allclose(report["v_loss"], ((along - v) ** 2).mean(axis=1), rtol=1e-9)
    # the derivative has no gradient: that of the error is 2 e du/dw
    params = lambda w: np.asarray(curved({"w": w}, *fixed))
    told = one.conditioner.example(8)
    angle = np.arctan2(r, 1 - r) * 2
    told["second_time"] = told["second_time"].at[:, 0].set(np.cos(angle)).at[:, 8].set(np.sin(angle))
    fixed = (jnp.asarray(x), jnp.asarray(t), told)
    step = np.zeros((3, 3))
    step[1, 2] = h
    slope = (params(WEIGHTS["w"] + step) - params(WEIGHTS["w"] - step)) / (2 * h)
    error = u(x, t, r) + column(t - r) * change - v
    np.testing.assert_allclose(plain[:, 1, 2], (2 * error * slope).sum(axis=1), rtol=1e-5)


def test_guidance_is_in_the_field_that_is_learned(x64):
    one = problem((3,), dropout=0.5, classes=2)
    batch, eps, t, r = drawn(one, 32, 0.0)
    assert np.all(r == t)
    options = {"omega": 1.5, "kappa": 0.25, "interval": (0.3, 0.8), "moving": 0.0, "power": 0.0}
    losses = running(mean_flow(one, **options), batch, curved)(WEIGHTS)[0]
    keys = context(32, None).keys
    told = np.asarray(one.conditioner.train(keys, batch)[1]["label"])
    x0, t_ = batch["image"], t[:, None]
    x, v = (1 - t_) * x0 + t_ * eps, eps - x0

    def u(labels):
        h = x @ np.asarray(WEIGHTS["w"]) + np.sin(3 * t_) + np.cos(t_) * x + 0.3 * labels[:, None]
        return np.tanh(h) + 0.1 * h**2

    acts = (told != 2) & (0.3 <= t) & (t <= 0.8)
    assert 3 < acts.sum() < 29
    guided = 1.5 * v + 0.25 * u(told) - 0.75 * u(np.full(32, 2))
    target = np.where(acts[:, None], guided, v)
    np.testing.assert_allclose(losses, ((u(told) - target) ** 2).sum(axis=1), rtol=1e-9)


def test_the_two_times_are_the_larger_and_the_smaller_of_two_draws_by_an_examples_own_key():
    one, count = problem(timesteps=timesteps.uniform(problem().schedule)), 4000
    given = context(count, None)._replace(t=np.random.default_rng(0).random(count))
    t, r = (np.asarray(a) for a in flow_maps.two_times(one, {"timesteps": ()}, given, 0.25))
    assert np.all(r <= t)
    assert abs((r < t).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)
    np.testing.assert_allclose(t.mean(), 2 / 3, atol=0.02)  # of the larger of two
    np.testing.assert_allclose(r[r < t].mean(), 1 / 3, atol=0.04)
    part = given._replace(keys=given.keys[5:9], t=given.t[5:9])
    again = flow_maps.two_times(one, {"timesteps": ()}, part, 0.25)
    np.testing.assert_array_equal(again, (t[5:9], r[5:9]))


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_shortcut_is_two_of_half_its_length(x64, guidance):
    one = problem((3,), dropout=0.5, classes=2)
    batch, given, ema = data(64, size=3), context(64, None), {"w": WEIGHTS["w"] + 0.2}
    eps = np.array(normal(fold_in(given.keys, 0), (3,)))
    args = (given, 0.5, 3, one.schedule)
    longer, t, r, shortest = (np.asarray(a) for a in flow_maps.of_a_grid(*args))
    assert 20 < longer.sum() < 44
    lengths, parts = (t - r)[longer], np.asarray([1, 1 / 2, 1 / 4])
    assert set(lengths) == set(parts)  # halves, of 1 / 8 at least
    np.testing.assert_array_equal(shortest[longer], lengths == 1 / 4)
    assert np.all(t[longer] / lengths == np.round(t[longer] / lengths))
    np.testing.assert_array_equal(t[~longer], given.t[~longer])
    told = np.asarray(one.conditioner.train(given.keys, batch)[1]["label"])
    objective = shortcut(one, steps=8, share=0.5, guidance=guidance)
    losses = running(objective, batch, curved, ema)(WEIGHTS)[0]

    def u(w, x, t, r, label):
        h = x @ np.asarray(w) + np.sin(3 * t) + np.cos(r) * x + 0.3 * label
        return np.tanh(h) + 0.1 * h**2

    for i in range(64):
        x0, e, at, to = batch["image"][i], eps[i], t[i], r[i]
        x, target = (1 - at) * x0 + at * e, e - x0

        def teacher(x, start, end, i=i):
            mine = u(ema["w"], x, start, end, told[i])
            w = guidance if shortest[i] else 0.0
            return mine + w * (mine - u(ema["w"], x, start, end, 2))

        if longer[i]:
            middle = (at + to) / 2
            first = teacher(x, at, at if shortest[i] else middle)
            second = teacher(
                x - (at - middle) * first, middle, middle if shortest[i] else to
            )
            target = (first + second) / 2
        expected = np.mean((u(WEIGHTS["w"], x, at, to, told[i]) - target) ** 2)
        np.testing.assert_allclose(losses[i], expected, rtol=1e-9)


def test_reflow_learns_the_pairs_of_its_teacher(x64):
    """Of Gaussian data the teacher makes mean + std eps of eps, up to its steps' error; on the
    straight path between them eps = (x - (1 - t) mean) / ((1 - t) std + t)."""
    mean, std = 0.7, 0.5

    def network(params, x, t, cond, dropout_key=None):
        if "scale" not in params:
            return exact(params, x, t, cond)
        t = t[:, None]
        eps = (x - (1 - t) * mean) / ((1 - t) * std + t)
        return params["scale"] * (eps - (mean + std * eps))

    objective = reflow(problem(), steps=64)
    assert objective.teacher
    aux = objective.init(jax.random.key(0), right())
    given, batch = context(256, network), data(256)

    def losses(scale):
        return objective.loss({"scale": scale}, aux, given, batch)[0]

    value, slope = jax.jit(jax.value_and_grad(lambda s: losses(s).mean()))(1.0)
    assert value < 1e-6 and abs(slope) < 1e-3 < 1e-2 < losses(1.1).mean()
    with pytest.raises(ValueError, match="dropout is above 0"):
        reflow(problem(), guidance=1.0)


TRAINED = OBJECTIVES | {"reflow": functools.partial(reflow, steps=16)}


@pytest.mark.parametrize("name", TRAINED)
def test_a_network_trained_by_it_reaches_the_flow_map(name):
    """Of N(0.7, 0.5^2) from N(0, 1); reflow, of a teacher that knows it, finds its pairs' flow."""

    def network(params, x, t, cond, dropout_key=None):
        if "a" in params:
            return exact(params, x, t, cond)
        if name == "reflow":
            t = t[:, None]
            eps = (x - (1 - t) * params["mean"]) / ((1 - t) * params["std"] + t)
            return eps - (params["mean"] + params["std"] * eps)
        return average_velocity(x, t, second_of(cond), params["mean"], params["std"])

    objective, optimizer = TRAINED[name](problem()), optax.adam(optax.cosine_decay_schedule(0.05, 300))
    step = make_train_step(objective, network, optimizer, warmed_up_ema(0.9))
    params = {"mean": jnp.float32(0.0), "std": jnp.float32(1.0)}
    aux = objective.init(jax.random.key(0), right())
    state = init_state(params, optimizer, {}, aux)

    def body(state, key):
        draws = 0.7 + 0.5 * jax.random.normal(key, (256, 1))
        return step(state, jax.random.key(1), {"image": draws, "label": jnp.zeros(256, int)})

    state, metrics = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(jax.random.key(2), 300)))(state)
    np.testing.assert_allclose(state.params["mean"], 0.7, atol=0.03)
    np.testing.assert_allclose(state.params["std"], 0.5, atol=0.03)
    if name in MEANS or name == "shortcut":
        assert metrics["v_loss"][-50:].mean() < metrics["v_loss"][:50].mean()


def test_a_steps_cost_is_that_of_its_formula():
    """In products of a layer of 64 x 64: a forward pass is one, a derivative along v another, a
    backward pass of the layer's weights one more, as nobody asks for the gradient by x."""
    batch, given = data(16, size=64), context(16, None)
    once = 2 * 16 * 64 * 64

    def network(params, x, t, cond, dropout_key=None):
        return jnp.tanh(x @ params["w"] + t[:, None]) + cond["second_time"][:, :1]

    def cost(factory, **options):
        objective = factory(problem((64,), dropout=0.1, classes=2), **options)
        params = {"w": jnp.ones((64, 64))}
        aux = objective.init(jax.random.key(0), params)
        known = given._replace(apply_fn=network, ema_params=params)
        loss = lambda p: objective.loss(p, aux, known, batch)[0].mean()
        return flops.count(jax.make_jaxpr(jax.grad(loss))(params)).flops / once

    assert cost(mean_flow) == 3
    assert cost(mean_flow, improved=True) == 4
    assert cost(mean_flow, omega=2.0) == 4
    assert cost(mean_flow, omega=2.0, kappa=0.5) == 5
    assert cost(shortcut) == 4
    assert cost(shortcut, guidance=1.0) == 6
    assert cost(reflow, steps=10) == 2 * 9 + 1 + 2


@pytest.mark.parametrize(
    ("factory", "options", "changed", "said"),
    [
        (mean_flow, {"moving": 1.0}, {}, "moving must be below 1"),
        (mean_flow, {"omega": 2.0}, {}, "label.dropout=0.1"),
        (mean_flow, {"constant": 0.0}, {}, "constant must be above 0"),
        (mean_flow, {"interval": (0.5,)}, {}, "interval must be"),
        (shortcut, {"steps": 100}, {}, "power of 2, not 100"),
        (shortcut, {"share": 0.0}, {}, "share must be above 0"),
        (shortcut, {"guidance": 1.0}, {}, "dropout is above 0"),
        (mean_flow, {}, {"schedule": schedules.cosine(100)}, "schedule=rectified_flow"),
        (shortcut, {}, {"schedule": schedules.SCHEDULES["vp"]()}, "schedule=rectified_flow"),
        (mean_flow, {}, {"weighting": lambda level: 1.0}, "not of mean_flow"),
        (shortcut, {}, {"variance": "learned_range"}, "learned_variance"),
        (mean_flow, {}, {"conditioner": problem().conditioner._replace(kinds={})}, "second_time"),
    ],
)
def test_what_they_cannot_be_made_of_is_refused(factory, options, changed, said):
    changed = {"timesteps": timesteps.uniform(problem().schedule)} | changed
    with pytest.raises(ValueError, match=said):
        factory(problem(**changed), **options)
