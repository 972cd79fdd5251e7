"""What an objective is given, and what becomes of what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import image_batch, objective_of, problem

from diffusion_jax.conditioning import augmentation, joined, label
from diffusion_jax.core.noise import example_keys
from diffusion_jax.data.spec import Declared
from diffusion_jax.objectives import OBJECTIVES, Context, noised
from diffusion_jax.training.state import init_state, warmed_up_ema
from diffusion_jax.training.step import make_train_step

SIZE = 12
BATCH = image_batch(SIZE)
X0 = np.float64(BATCH["image"]) / 127.5 - 1
T = np.linspace(0, 99, SIZE).astype(int)
DROPS = label(Declared((4, 4, 1), 10), 0.5)


def met(problem, index=slice(None), training=True, batch=BATCH):
    """`noised` of the examples of those numbers."""
    batch = {name: a[index] for name, a in batch.items()}

    @jax.jit
    def run(keys, t):
        given = Context(None, None, 0, keys, t, jnp.ones(len(t)), training=training)
        return noised(problem, given, batch)

    keys = example_keys(jax.random.key(3), np.arange(SIZE))
    return jax.tree.map(np.asarray, run(keys[index], T[index]))


def test_noised_data_are_the_codecs_with_noise_and_level_of_their_own():
    found = met(problem(conditioner=DROPS))
    np.testing.assert_allclose(found.x0, X0, atol=1e-6)
    for i in (0, 7):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), i), 0)
        np.testing.assert_array_equal(found.eps[i], jax.random.normal(key, (4, 4, 1)))
    np.testing.assert_array_equal(found.level.t, T)
    bar = np.cos((T + 1 + 0.8) / 100.8 * np.pi / 2) ** 2 / np.cos(0.8 / 100.8 * np.pi / 2) ** 2
    np.testing.assert_allclose(found.level.alpha[:-2] ** 2, bar[:-2], rtol=1e-4)
    np.testing.assert_allclose(found.level.alpha**2 + found.level.sigma**2, 1, rtol=1e-5)
    told = found.cond["label"]
    assert 0 < (told == 10).sum() < SIZE
    np.testing.assert_array_equal(told[told != 10], BATCH["label"][told != 10])


def test_an_example_is_the_same_in_any_batch():
    one = problem(conditioner=joined([DROPS, augmentation(0.5)]))
    whole, order = met(one), np.array([8, 2, 5])
    part, chosen = met(one, order), jax.tree.map(lambda a: a[order], whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), chosen, part)


def test_in_evaluation_all_is_told_and_nothing_augmented():
    one = problem(conditioner=joined([DROPS, augmentation(0.5)]))
    found = met(one, training=False)
    assert set(found.cond) == {"label"}
    np.testing.assert_array_equal(found.cond["label"], BATCH["label"])
    np.testing.assert_allclose(found.x0, X0, atol=1e-6)
    trained = met(one)
    np.testing.assert_array_equal(found.eps, trained.eps)
    assert (np.abs(trained.x0 - X0).max((1, 2, 3)) > 1e-3).any()
    assert (trained.cond["label"] == 10).any()


def test_an_entry_of_another_name_can_be_what_is_modelled():
    batch = {"points": BATCH["image"], "label": BATCH["label"]}
    found = met(problem(entry="points"), batch=batch)
    np.testing.assert_allclose(found.x0, X0, atol=1e-6)
    assert found.cond == {}


def step_of(objective, apply_fn=None):
    optimizer = optax.sgd(0.1)
    return optimizer, make_train_step(objective, apply_fn, optimizer, warmed_up_ema(0.99))


def test_what_an_objective_says_of_its_own_is_logged_as_means():
    def loss(params, aux, context, batch):
        x = batch["x"]
        return params["p"] * x, {"critic": 10 * x, "parts": jnp.stack([x, 3 * x], 1)}

    optimizer, step = step_of(objective_of(loss))
    state = init_state({"p": jnp.float32(1.0)}, optimizer)
    _, metrics = step(state, jax.random.key(0), {"x": jnp.array([1.0, 2.0, 3.0, 6.0])})
    expected = {"loss": 3.0, "critic": 30.0, "grad_norm": 3.0, "param_norm": 0.7}
    assert set(metrics) == set(expected)  # no quartiles without a log-SNR, no "parts" of two axes
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)


def test_a_teacher_is_the_averaged_parameters_with_the_frozen_ones():
    def loss(params, aux, context, batch):
        student, teacher = (p["w"] * batch["x"] + p["b"] for p in (params, context.ema_params))
        return (student - jax.lax.stop_gradient(teacher)) ** 2, {"teacher": teacher}

    optimizer, step = step_of(objective_of(loss))
    state = init_state({"w": jnp.float32(3.0)}, optimizer, frozen={"b": jnp.float32(5.0)})
    state = state.replace(ema_params={"w": jnp.float32(1.0)})
    x = np.array([1.0, 2.0, -1.0, 0.5])
    after, metrics = step(state, jax.random.key(0), {"x": jnp.asarray(x, jnp.float32)})
    np.testing.assert_allclose(metrics["teacher"], np.mean(x + 5), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.mean((2 * x) ** 2), rtol=1e-6)
    moved = 3.0 - 0.1 * np.mean(2 * 2 * x * x)
    np.testing.assert_allclose(after.params["w"], moved, rtol=1e-6)
    np.testing.assert_allclose(after.ema_params["w"], 0.1 * 1.0 + 0.9 * moved, rtol=1e-6)
    assert after.frozen == state.frozen
    assert set(after.params) == set(after.ema_params) == {"w"}


def test_an_objectives_state_is_updated_by_the_report_after_the_step():
    seen = {}

    def update(aux, state, report):
        seen.update(report)
        return {"count": aux["count"] + state.step, "p": state.params["p"]}

    def sample(aux, key, index, total):
        return 7 + index, jnp.full(index.shape, 0.5) + aux["count"]

    loss = lambda params, aux, context, batch: (params["p"] * batch["x"], {"own": batch["x"]})
    objective = objective_of(loss, update=update, sample=sample)
    optimizer, step = step_of(objective)
    start = {"count": jnp.int32(0), "p": jnp.float32(0.0)}
    state = init_state({"p": jnp.float32(2.0)}, optimizer, aux=start)
    x = jnp.array([1.0, 3.0])
    state, metrics = step(state, jax.random.key(0), {"x": x})
    assert set(seen) == {"t", "weights", "losses", "own"}
    np.testing.assert_array_equal(seen["t"], [7, 8])
    np.testing.assert_allclose(seen["losses"], 2 * x)
    np.testing.assert_allclose(metrics["loss"], 0.5 * np.mean(2 * x))
    assert state.aux == {"count": 1, "p": state.params["p"]}
    assert float(state.params["p"]) != 2.0


def test_parameters_that_are_not_learned_by_gradient_are_put_in_before_the_average():
    def after(params, aux, report):
        return {**params, "code": aux["scale"] * report["own"].sum()}

    loss = lambda params, aux, context, batch: (params["p"] * batch["x"], {"own": batch["x"]})
    update = lambda aux, state, report: {"scale": aux["scale"] + 1.0}
    optimizer, step = step_of(objective_of(loss, update=update, after=after))
    params = {"p": jnp.float32(2.0), "code": jnp.float32(9.0)}
    state = init_state(params, optimizer, aux={"scale": jnp.float32(5.0)})
    state, metrics = step(state, jax.random.key(0), {"x": jnp.array([1.0, 3.0])})
    np.testing.assert_allclose(state.params["code"], 5.0 * 4.0)  # by the state before the step
    np.testing.assert_allclose(state.params["p"], 2.0 - 0.1 * 2.0)
    np.testing.assert_allclose(state.ema_params["code"], 0.1 * 9.0 + 0.9 * 20.0, rtol=1e-6)
    np.testing.assert_allclose(metrics["param_norm"], np.hypot(20.0, 1.8), rtol=1e-6)


@pytest.mark.parametrize("name", ["vlb", "hybrid"])
def test_the_bound_is_refused_where_data_are_not_of_8_bits(name):
    one = problem(variance="learned_range")
    OBJECTIVES[name](one)
    floats = one._replace(codec=one.codec._replace(bins=None))
    with pytest.raises(ValueError, match="8-bit data"):
        OBJECTIVES[name](floats)


def test_what_an_objective_cannot_be_made_of_is_refused():
    fixed = problem()
    with pytest.raises(ValueError, match=r"model\.learned_variance=true"):
        OBJECTIVES["hybrid"](fixed)
    with pytest.raises(ValueError, match="coefficient must be at least 0, not -1"):
        OBJECTIVES["hybrid"](problem(variance="learned_range"), -1)
    with pytest.raises(ValueError, match="not of vlb"):
        OBJECTIVES["vlb"](problem(weighting=lambda level: 1.0))
    with pytest.raises(ValueError, match="needs the l2 norm"):
        OBJECTIVES["denoising"](problem(weighting=lambda level: 1.0), "l1")
