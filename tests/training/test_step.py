"""The training step against arithmetic done by hand, and its program for a GPU."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import image_batch, objective_of, problem
from tiny import tiny_config

from diffusion_jax.core import schedules, timesteps
from diffusion_jax.objectives import denoising
from diffusion_jax.runs.build import batch_spec, build
from diffusion_jax.runs.config import use
from diffusion_jax.training.state import TrainState, init_state, warmed_up_ema
from diffusion_jax.training.step import loss_by_quartile, make_train_step


def quadratic(params, aux, context, batch):
    """(p x - 1)^2, whose gradient is 2 x (p x - 1)."""
    return (params["p"] * batch["x"] - 1.0) ** 2, {}


OF_X = objective_of(quadratic)


def step_of(objective, optimizer, apply_fn=None, **options):
    return make_train_step(objective, apply_fn, optimizer, warmed_up_ema(0.999), **options)


def test_one_step_is_gradient_descent_and_a_warmed_up_ema():
    optimizer = optax.sgd(0.1)
    state = init_state({"p": jnp.float32(3.0)}, optimizer)
    x = np.array([0.5, 1.0, 2.0, -1.0])
    gradient = np.mean(2 * x * (3.0 * x - 1.0))
    expected = 3.0 - 0.1 * gradient
    state, metrics = jax.jit(step_of(OF_X, optimizer))(
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
    weights = jnp.array([0.0, 0.0, 4.0, 0.0])
    weighted = OF_X._replace(sample=lambda aux, key, index, total: (jnp.zeros(4, int), weights))
    state = init_state({"p": jnp.float32(3.0)}, optax.sgd(0.1))
    step = step_of(weighted, optax.sgd(0.1))
    state, metrics = step(state, jax.random.key(0), {"x": jnp.array([0.5, 1.0, 2.0, -1.0])})
    np.testing.assert_allclose(metrics["loss"], 25.0, rtol=1e-6)
    np.testing.assert_allclose(state.params["p"], 3.0 - 0.1 * 20.0, rtol=1e-6)


def test_accumulated_parts_give_the_step_of_the_whole_batch():
    def apply_fn(params, x, t, cond, dropout_key=None):
        return params["w"] * x + params["b"] * t[:, None, None, None] / 100

    objective, batch = denoising(problem()), image_batch(12)
    states = []
    for parts in (1, 2, 4):
        optimizer = optax.adam(1e-2)
        params = {"w": jnp.float32(0.5), "b": jnp.float32(0.1)}
        state = init_state(params, optimizer, aux=objective.init(None, params))
        step = jax.jit(step_of(objective, optimizer, apply_fn, accumulation=parts))
        for _ in range(3):
            state, metrics = step(state, jax.random.key(1), batch)
        states.append((state.params, metrics))
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), states[0], other)


def test_a_batch_that_cannot_be_cut_into_the_parts_is_refused():
    state = init_state({"p": jnp.float32(3.0)}, optax.sgd(0.1))
    with pytest.raises(ValueError, match="not divisible into 3"):
        step_of(OF_X, optax.sgd(0.1), accumulation=3)(state, jax.random.key(0), {"x": jnp.ones(4)})


def quartiles(logsnr, losses):
    found = loss_by_quartile(jnp.asarray(logsnr), jnp.asarray(losses))
    return [float(found[f"loss_q{i}"]) for i in range(4)]


@pytest.mark.parametrize("count", [4, 16, 18, 37])
def test_quartiles_are_of_the_examples_by_their_log_snr(count):
    rng = np.random.default_rng(count)
    logsnr, losses = rng.normal(size=(2, count)).astype(np.float32)
    parts = np.split(losses[np.argsort(-logsnr)], [round(count * i / 4) for i in (1, 2, 3)])
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    np.testing.assert_allclose(quartiles(logsnr, losses), list(map(np.mean, parts)), rtol=1e-5)


def test_the_first_quartile_is_the_cleanest_and_a_small_batch_has_empty_ones():
    np.testing.assert_allclose(quartiles([-3.0, 9.0, 1.0, 4.0], [1.0, 3.0, 5.0, 7.0]), [3, 7, 5, 1])
    assert np.isnan(quartiles([1.0, 2.0], [1.0, 3.0])).sum() == 2


def test_levels_of_parts_of_an_example_count_by_their_mean():
    logsnr = np.array([[0.0, 8.0], [5.0, 5.0], [-9.0, 9.0], [2.0, 0.0]])
    np.testing.assert_allclose(quartiles(logsnr, [1.0, 3.0, 5.0, 7.0]), [3, 1, 7, 5])


def test_no_quartile_of_edms_distribution_is_empty():
    """Its t crowd in a part of their range: quarters of the range of t had none of them."""
    schedule = schedules.edm()
    distribution = timesteps.lognormal(schedule)
    t, _ = distribution.sample((), jax.random.key(0), jnp.arange(16), 16)
    found = quartiles(schedule.level(t).logsnr, jnp.arange(16.0))
    assert np.all(np.isfinite(found)) and sum(found) / 4 == 7.5
    quarter = (t - schedule.t_min) / (schedule.t_max - schedule.t_min) * 4
    assert len(np.unique(np.floor(quarter))) < 4


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (90, 0.91), (10**6, 0.999)])
def test_the_ema_warms_up(step, expected):
    np.testing.assert_allclose(warmed_up_ema(0.999)(step), expected, rtol=1e-6)


def test_the_state_is_arrays_only():
    state = init_state({"p": jnp.ones(2)}, optax.adam(1e-3))
    assert isinstance(state, TrainState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


def gpu_program(config):
    """The StableHLO of a training step of a run, exported on this machine for NVIDIA's GPUs."""
    parts = build(config)
    step = make_train_step(
        parts.objective, parts.apply_fn, parts.optimizer, parts.ema, cast=parts.cast
    )
    state = jax.eval_shape(parts.init_state, jax.random.key(0))
    batch = batch_spec(config, parts, 11)
    exported = jax.export.export(
        jax.jit(step),
        platforms=["cuda"],
        disabled_checks=[
            jax.export.DisabledSafetyCheck.custom_call(name)
            for name in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
        ],
    )
    return exported(state, jax.random.key(0), batch).mlir_module(), state.params


def arrays(text, dtype):
    """The shapes of a program's arrays of a precision."""
    found = re.findall(rf"tensor<((?:\d+x)+){dtype}>", text)
    return {tuple(map(int, shape.split("x")[:-1])) for shape in found}


NETWORKS = {  # of 64 positions, two heads and two attentions or more
    "unet": {"channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (8,)},
    "dit": {"width": 48, "depth": 2, "patch": 1},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_on_a_gpu_has_fused_attention_and_no_weights_in_memory(network):
    """Of 11 images of 64 positions and two heads, 11 x 2 x 64 x 64 weights, in any order."""
    config = tiny_config()
    config.model = use(network, **NETWORKS[network], heads=2, dtype="bfloat16")
    text, params = gpu_program(config)
    attentions = sum("qkv" in str(jax.tree.structure(layers)) for layers in params.values())
    calls = re.findall(r"custom_call @(__cudnn\$\w+)", text)
    for name in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"):
        # the call under differentiation, and once more in the backward pass, which XLA joins
        assert calls.count(name) >= attentions > 1
    weights = 11 * 2 * 64 * 64
    assert weights not in map(math.prod, arrays(text, "f32"))
    config.model.attention = "plain"
    assert weights in map(math.prod, arrays(gpu_program(config)[0], "f32"))


def test_every_parameter_is_converted_once_a_step_and_its_gradient_is_float32():
    config = tiny_config()
    config.model = use("unet", channels=16, channel_mult=(1,), blocks=1, dtype="bfloat16")
    config.model.attention_resolutions = ()
    parts = build(config)
    params = jax.eval_shape(parts.init_params, jax.random.key(0))
    copy = jax.eval_shape(parts.cast, params)
    halves = {
        path[-2].key
        for path, a in jax.tree_util.tree_leaves_with_path(copy)
        if a.dtype == jnp.bfloat16
    }
    assert halves == {"conv_in", "conv1", "conv2", "skip", "qkv", "out"}
    example = (jnp.ones((2, 8, 8, 1)), jnp.ones(2), {"label": jnp.arange(2)})
    params = jax.jit(parts.init_params)(jax.random.key(0))
    params = jax.tree.map(lambda a: a + 0.1 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), params)
    network = jax.jit(parts.apply_fn)
    np.testing.assert_array_equal(network(params, *example), network(parts.cast(params), *example))
