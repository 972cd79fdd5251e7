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
COUNT = 64  # of the examples of `curved`


def context(count, network, ema=None):
    """Of examples whose t are those of the problem's distribution."""
    index, key = np.arange(count), jax.random.key(3)
    t, weights = problem().timesteps.sample((), key, index, count)
    return Context(network, ema, 0, example_keys(key, index), t, weights)


def running(objective, network=exact, ema=None):
    """(params, batch) -> (losses [B], report, the gradient of each loss by its own params). ema:
    the averaged parameters, the same ones where None.

    params: arrays [B, ...], one set an example, so that one backward pass has all gradients."""
    aux = objective.init(jax.random.key(0), ())

    @jax.jit
    def run(params, batch):
        given = context(len(batch["image"]), network, params if ema is None else ema)

        def total(params):
            losses, report = objective.loss(params, aux, given, batch)
            return losses.sum(), (losses, report)

        each, (losses, report) = jax.grad(total, has_aux=True)(params)
        return losses, report, each

    return run


@jax.jit
def drawn(batch):
    """Of `COUNT` examples of three numbers: eps; (t, r) of MeanFlow at moving=0.9; what a shortcut
    of a grid of 8 is between; labels."""
    given = context(COUNT, None)
    one = problem((3,), dropout=0.5, classes=2)
    return (
        normal(fold_in(given.keys, 0), (3,)),
        flow_maps.two_times(one, {"timesteps": ()}, given, 0.9),
        flow_maps.of_a_grid(given, 0.5, 3, one.schedule),
        given.t,
        one.conditioner.train(given.keys, batch)[1]["label"],
    )


OBJECTIVES = {
    "mean flow": functools.partial(mean_flow, power=0.0, moving=0.5),
    "improved": functools.partial(mean_flow, power=0.0, moving=0.5, improved=True),
    "shortcut": functools.partial(shortcut, share=0.5),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_vanish_at_the_flow_map(x64, name):
    """Of one point the losses of all examples, of Gaussian data the mean gradient, where MeanFlow's
    loss is that of a perfect network. Improved, the network predicts x0, of which u is (x - x0) /
    t."""

    def network(params, x, t, cond, dropout_key=None):
        u = exact(params, x, t, cond)
        return x - t[:, None] * u if name == "improved" else u

    predicted = predictions.x0() if name == "improved" else predictions.flow()
    run, count = running(OBJECTIVES[name](problem(parameterization=predicted)), network), 4000
    losses, _, each = run(right(count, std=0.0), data(count, std=0.0))
    np.testing.assert_allclose(losses, 0, atol=1e-18)
    for parameter in ("a", "b"):
        np.testing.assert_allclose(each[parameter], 0, atol=1e-8)
    wrong = run(right(count, std=0.0, b=0.1), data(count, std=0.0))[0]
    assert np.all(wrong > 1e-8) and wrong.mean() > 1e-3

    losses, report, each = run(right(count), data(count))
    for g in (each["a"], each["b"]):
        assert abs(g.mean()) < 4 * g.std() / np.sqrt(count)
    wrong = run(right(count, a=1.3), data(count))[2]["a"]
    assert wrong.mean() > 8 * wrong.std() / np.sqrt(count)
    if name == "shortcut":  # two halves of an exact map are the whole
        assert report["self_loss"].mean() < 1e-5 < 1e-2 < report["v_loss"].mean()
    else:
        # the v-loss is E Var(eps - x0 | x) = E std^2 / d(t)^2, t the larger of two
        t = 1 / (1 + np.exp(0.4 - np.random.default_rng(0).normal(size=(2, 10**5)).max(axis=0)))
        variance = 0.25 / ((1 - t) ** 2 * 0.25 + t**2)
        np.testing.assert_allclose(report["v_loss"].mean(), variance.mean(), rtol=0.1)


def curved(params, x, t, cond, dropout_key=None):
    """A network of no particular data; params: w [B, 3, 3]."""
    h = jnp.einsum("bi,bij->bj", x, params["w"]) + jnp.sin(3 * t)[:, None]
    h += jnp.cos(second_of(cond))[:, None] * x
    if "label" in cond:
        h += 0.3 * cond["label"][:, None]
    return jnp.tanh(h) + 0.1 * h**2


def by_numpy(w, x, t, r, label=0):
    """`curved` at one set of weights [3, 3]."""
    h = x @ w + np.sin(3 * t) + np.cos(r) * x + 0.3 * label
    return np.tanh(h) + 0.1 * h**2


WEIGHTS = np.random.default_rng(1).normal(size=(3, 3))


def repeated(w):
    return {"w": np.broadcast_to(w, (COUNT, 3, 3))}


@pytest.mark.parametrize("name", MEANS)
def test_the_derivative_agrees_with_finite_differences(x64, name):
    batch = data(COUNT, size=3)
    eps, (t, r), *_ = jax.tree.map(np.asarray, drawn(batch))
    assert 50 < (r < t).sum() < COUNT
    t, r, x0, h = t[:, None], r[:, None], batch["image"], 1e-5
    x, v = (1 - t) * x0 + t * eps, eps - x0
    u = lambda x, t, w=WEIGHTS: by_numpy(w, x, t, r)
    own = by_numpy(WEIGHTS, x, t, t)
    along = own if MEANS[name] else v
    change = (u(x + h * along, t + h) - u(x - h * along, t - h)) / (2 * h)
    error = u(x, t) + (t - r) * change - v
    squares = (error**2).sum(axis=1)
    objective = mean_flow(
        problem((3,)), improved=MEANS[name], moving=0.9, power=0.75, constant=0.01
    )
    losses, report, each = running(objective, curved)(repeated(WEIGHTS), batch)
    weight = (squares + 0.01) ** -0.75
    np.testing.assert_allclose(losses, squares * weight, rtol=1e-7)
    # neither the derivative nor the weight has a gradient: that of u alone is left
    step = np.zeros((3, 3))
    step[1, 2] = h
    slope = (u(x, t, WEIGHTS + step) - u(x, t, WEIGHTS - step)) / (2 * h)
    expected = weight * (2 * error * slope).sum(axis=1)
    np.testing.assert_allclose(each["w"][:, 1, 2], expected, rtol=1e-5, atol=1e-9)
    of_v = ((own - v) ** 2).mean(axis=1)
    if not MEANS[name]:
        of_v = np.where((t == r)[:, 0], of_v / 0.1, 0.0)
    np.testing.assert_allclose(report["v_loss"], of_v, rtol=1e-7)


def test_guidance_is_in_the_field_that_is_learned(x64):
    batch = data(COUNT, size=3)
    eps, (t, _), _, _, label = jax.tree.map(np.asarray, drawn(batch))
    options = {"omega": 1.5, "kappa": 0.25, "interval": (0.3, 0.8), "moving": 0.0, "power": 0.0}
    objective = mean_flow(problem((3,), dropout=0.5, classes=2), **options)
    losses = running(objective, curved)(repeated(WEIGHTS), batch)[0]
    x0, column, told = batch["image"], t[:, None], label[:, None]
    x, v = (1 - column) * x0 + column * eps, eps - x0
    u = lambda label: by_numpy(WEIGHTS, x, column, column, label)
    acts = (label != 2) & (t >= 0.3) & (t <= 0.8)
    assert 10 < acts.sum() < 54
    target = np.where(acts[:, None], 1.5 * v + 0.25 * u(told) - 0.75 * u(2), v)
    np.testing.assert_allclose(losses, ((u(told) - target) ** 2).sum(axis=1), rtol=1e-9)


def test_the_two_times_are_the_larger_and_the_smaller_of_two_draws_by_an_examples_own_key():
    count, key = 4000, jax.random.key(3)
    one = problem(timesteps=timesteps.uniform(problem().schedule))
    first = np.random.default_rng(0).random(count)

    @jax.jit
    def times(index, t):
        given = Context(exact, None, 0, example_keys(key, index), t, 1.0)
        return flow_maps.two_times(one, {"timesteps": ()}, given, 0.25)

    t, r = (np.asarray(a) for a in times(np.arange(count), first))
    assert np.all(r <= t)
    assert abs((r < t).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / count)
    np.testing.assert_allclose(t.mean(), 2 / 3, atol=0.02)  # of the larger of two
    np.testing.assert_allclose(r[r < t].mean(), 1 / 3, atol=0.04)
    order = np.arange(count)[::-1]
    again = times(order, first[order])
    np.testing.assert_array_equal(again, (t[::-1], r[::-1]))


def test_a_shortcut_is_two_of_half_its_length(x64):
    batch, ema = data(COUNT, size=3), WEIGHTS + 0.2
    eps, _, grid, own_t, label = jax.tree.map(np.asarray, drawn(batch))
    longer, t, r, shortest = grid
    assert 16 < longer.sum() < 48
    lengths = (t - r)[longer]
    assert set(lengths) == {1, 1 / 2, 1 / 4}  # whose halves are of 1 / 8 at least
    np.testing.assert_array_equal(shortest[longer], lengths == 1 / 4)
    np.testing.assert_array_equal(t[longer] / lengths, np.round(t[longer] / lengths))
    np.testing.assert_array_equal((t[~longer], r[~longer]), (own_t[~longer],) * 2)
    objective = shortcut(problem((3,), dropout=0.5, classes=2), steps=8, share=0.5, guidance=2.0)
    losses = running(objective, curved, repeated(ema))(repeated(WEIGHTS), batch)[0]
    for i in range(COUNT):
        x0, e, at, to = batch["image"][i], eps[i], t[i], r[i]
        x, target = (1 - at) * x0 + at * e, e - x0
        if longer[i]:
            middle, w = (at + to) / 2, 2.0 * shortest[i]

            def teacher(x, start, end, w=w, i=i):
                end = start if shortest[i] else end
                mine, other = (by_numpy(ema, x, start, end, k) for k in (label[i], 2))
                return mine + w * (mine - other)

            first = teacher(x, at, middle)
            target = (first + teacher(x - (at - middle) * first, middle, to)) / 2
        expected = np.mean((by_numpy(WEIGHTS, x, at, to, label[i]) - target) ** 2)
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
    aux = objective.init(jax.random.key(0), right(256))

    def losses(scale):
        return objective.loss({"scale": scale}, aux, context(256, network), data(256))[0].mean()

    run = jax.jit(jax.value_and_grad(losses))
    (value, slope), (wrong, _) = run(1.0), run(1.1)
    assert value < 1e-6 and abs(slope) < 1e-3 < 5e-3 < wrong
    with pytest.raises(ValueError, match="dropout is above 0"):
        reflow(problem(), guidance=1.0)


TRAINED = {
    "mean flow": functools.partial(mean_flow, moving=0.5),
    "shortcut": functools.partial(shortcut, share=0.5),
    "reflow": functools.partial(reflow, steps=16),
}


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

    objective = TRAINED[name](problem())
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 300))
    step = make_train_step(objective, network, optimizer, warmed_up_ema(0.9))
    params = {"mean": jnp.float32(0.0), "std": jnp.float32(1.0)}
    aux = objective.init(jax.random.key(0), right(1))
    state = init_state(params, optimizer, {}, aux)

    def body(state, key):
        draws = 0.7 + 0.5 * jax.random.normal(key, (256, 1))
        return step(state, jax.random.key(1), {"image": draws, "label": jnp.zeros(256, int)})

    keys = jax.random.split(jax.random.key(2), 300)
    state, metrics = jax.jit(lambda state: jax.lax.scan(body, state, keys))(state)
    np.testing.assert_allclose(state.params["mean"], 0.7, atol=0.03)
    np.testing.assert_allclose(state.params["std"], 0.5, atol=0.03)
    if name != "reflow":
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
