"""The training step against arithmetic done by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core import predictions, schedules, timesteps
from diffusion_jax.objectives import losses
from diffusion_jax.training.state import TrainState, init_state, warmed_up_ema
from diffusion_jax.training.step import loss_by_quartile, make_loss_fn, make_train_step, to_float

SCHEDULE = schedules.cosine(100)
UNIFORM = timesteps.uniform(SCHEDULE)


def quadratic(params, keys, batch, t, dropout_key):
    """(p x - 1)^2, whose gradient is 2 x (p x - 1)."""
    return (params["p"] * batch["x"] - 1.0) ** 2


def step_of(loss_fn, optimizer, **options):
    return make_train_step(loss_fn, optimizer, warmed_up_ema(0.999), UNIFORM, (0, 99), **options)


def test_one_step_is_gradient_descent_and_a_warmed_up_ema():
    optimizer = optax.sgd(0.1)
    state = init_state({"p": jnp.float32(3.0)}, optimizer)
    x = np.array([0.5, 1.0, 2.0, -1.0])
    gradient = np.mean(2 * x * (3.0 * x - 1.0))
    expected = 3.0 - 0.1 * gradient
    state, metrics = jax.jit(step_of(quadratic, optimizer))(
        state, jax.random.key(0), {"x": jnp.asarray(x, jnp.float32)}
    )
    assert state.step == 1
    np.testing.assert_allclose(state.params["p"], expected, rtol=1e-6)
    np.testing.assert_allclose(
        state.ema_params["p"], 0.1 * 3.0 + 0.9 * expected, rtol=1e-6
    )  # decay (1 + 0) / (10 + 0)
    np.testing.assert_allclose(metrics["loss"], np.mean((3.0 * x - 1.0) ** 2), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], abs(gradient), rtol=1e-6)
    np.testing.assert_allclose(metrics["param_norm"], abs(expected), rtol=1e-6)


def test_weights_of_the_timesteps_weigh_the_examples():
    weighted = UNIFORM._replace(
        sample=lambda state, key, index, total: (jnp.zeros(4, int), jnp.array([0.0, 0.0, 4.0, 0.0]))
    )
    step = make_train_step(quadratic, optax.sgd(0.1), warmed_up_ema(0.999), weighted, (0, 99))
    state = init_state({"p": jnp.float32(3.0)}, optax.sgd(0.1))
    state, metrics = step(state, jax.random.key(0), {"x": jnp.array([0.5, 1.0, 2.0, -1.0])})
    np.testing.assert_allclose(metrics["loss"], 25.0, rtol=1e-6)
    np.testing.assert_allclose(state.params["p"], 3.0 - 0.1 * 20.0, rtol=1e-6)


def test_accumulated_parts_give_the_step_of_the_whole_batch():
    apply_fn = lambda params, x, t, cond, dropout_key=None: (
        params["w"] * x + params["b"] * t[:, None, None, None] / 100
    )
    loss_fn = make_loss_fn(apply_fn, SCHEDULE, losses.denoising(predictions.eps()))
    batch = {"image": np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), np.uint8)}
    states = []
    for parts in (1, 2, 4):
        optimizer = optax.adam(1e-2)
        state = init_state({"w": jnp.float32(0.5), "b": jnp.float32(0.1)}, optimizer)
        step = jax.jit(step_of(loss_fn, optimizer, accumulation=parts))
        for _ in range(3):
            state, metrics = step(state, jax.random.key(1), batch)
        states.append((state.params, metrics))
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), states[0], other)


def labels_of(size, **options):
    """(keys, batch) -> the labels that the loss meets, and its noise, of a batch of `size`."""
    shown = lambda network, x0, eps, level, cond: (cond, eps)
    loss_fn = make_loss_fn(lambda *args, **kwargs: None, SCHEDULE, shown, **options)
    batch = {
        "image": np.zeros((size, 1, 1, 1), np.uint8),
        "label": np.arange(size, dtype=np.int32) % 10,
    }
    return lambda keys: loss_fn(None, keys, batch, jnp.zeros(size, int)), batch["label"]


def test_labels_are_dropped_in_their_share_by_each_examples_key():
    size, keys = 4000, jax.random.split(jax.random.key(0), 4000)
    run, labels = labels_of(size, label_dropout=0.3, no_label=10)
    met, noise = run(keys)
    dropped = met == 10
    np.testing.assert_array_equal(met[~dropped], labels[~dropped])
    assert abs(dropped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / size)
    np.testing.assert_array_equal(
        run(keys[::-1])[0][::-1] == 10, dropped
    )  # wherever in a batch an example lies
    assert (run(jax.random.split(jax.random.key(1), size))[0] == 10).tolist() != dropped.tolist()
    assert abs(np.corrcoef(dropped, noise.ravel())[0, 1]) < 4 / np.sqrt(size)
    np.testing.assert_array_equal(
        labels_of(size)[0](keys)[1], noise
    )  # the noise is that of no dropout


def test_without_label_dropout_labels_are_untouched():
    run, labels = labels_of(4)
    assert run(jax.random.split(jax.random.key(0), 4))[0] is labels


def test_a_batch_that_cannot_be_cut_into_the_parts_is_refused():
    state = init_state({"p": jnp.float32(3.0)}, optax.sgd(0.1))
    with pytest.raises(ValueError, match="not divisible into 3"):
        step_of(quadratic, optax.sgd(0.1), accumulation=3)(
            state, jax.random.key(0), {"x": jnp.ones(4)}
        )


def test_quartiles_of_t_and_an_empty_one():
    t, values = jnp.array([0, 24, 25, 99]), jnp.array([1.0, 3.0, 5.0, 7.0])
    result = loss_by_quartile(t, values, (0, 99))
    np.testing.assert_allclose([result[f"loss_q{i}"] for i in range(4)], [2.0, 5.0, np.nan, 7.0])


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (90, 0.91), (10**6, 0.999)])
def test_the_ema_warms_up(step, expected):
    np.testing.assert_allclose(warmed_up_ema(0.999)(step), expected, rtol=1e-6)


def test_pixels_span_the_range():
    np.testing.assert_allclose(
        to_float(jnp.array([0, 255, 51], jnp.uint8)), [-1.0, 1.0, -0.6], atol=1e-6
    )


def test_the_state_is_arrays_only():
    state = init_state({"p": jnp.ones(2)}, optax.adam(1e-3))
    assert isinstance(state, TrainState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
