"""EDM2's network: that magnitudes are preserved, that weights stay normalised, its size, what it
is told."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

from diffusion_jax.core.types import Kind
from diffusion_jax.models import edm2
from diffusion_jax.models.edm2 import EDM2, Block
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.training.step import make_train_step

TINY = EDM2(
    out_channels=3, channels=8, channel_mult=(1,), blocks=1, attention_factors=(), head_channels=8
)
TOLD = TINY.clone(kinds=(("label", Kind("index", 4)), ("hint", Kind("image", 2))))
RNG = np.random.default_rng(0)
magnitude = lambda a: float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64)))))


def inputs(size=8, batch=2):
    x = np.random.default_rng(2).standard_normal((batch, size, size, 3), np.float32)
    return x, np.linspace(-1.5, 1.0, batch, dtype=np.float32)


def told(labels=(0, 1), hint=1.0):
    return {"label": np.array(labels), "hint": np.full((2, 8, 8, 2), hint, np.float32)}


def shapes_of(model, *inputs):
    return jax.eval_shape(lambda key: model.init(key, *inputs)["params"], jax.random.key(0))


def random_params(model, *inputs, gain=1.0):
    rng = np.random.default_rng(1)
    draw = lambda a: rng.standard_normal(a.shape, np.float32) if a.ndim else np.float32(gain)
    return jax.tree.map(draw, shapes_of(model, *inputs))


@functools.cache
def compiled(model):
    return jax.jit(lambda params, *inputs: model.apply({"params": params}, *inputs))


def test_silu_has_the_magnitude_of_a_normal_number():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    square = np.sum(weights * np.square(edm2.mp_silu(nodes))) / math.sqrt(2 * math.pi)
    assert math.sqrt(square) == pytest.approx(1.0, abs=1e-3)  # of the constant's three digits


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_and_concatenations_have_the_magnitude_of_their_parts(t):
    a, b = (RNG.standard_normal((100_000, n)) for n in (2, 6))
    assert magnitude(edm2.mp_sum(a[:, 0], b[:, 0], t)) == pytest.approx(1.0, abs=0.02)
    both = np.asarray(edm2.mp_concatenate(a, b, t))
    assert magnitude(both) == pytest.approx(1.0, abs=0.02)
    first, second = (np.sum(np.square(part)) for part in (both[:, :2], both[:, 2:]))
    assert first / (first + second) == pytest.approx((1 - t) ** 2 / ((1 - t) ** 2 + t**2), abs=0.01)


def test_fourier_features_tell_noise_levels_apart_and_have_magnitude_1():
    t = np.log(np.geomspace(0.002, 80, 500)) / 4
    features = np.asarray(edm2.mp_fourier(t, 64))
    assert magnitude(features) == pytest.approx(1.0, abs=0.05)
    assert np.linalg.norm(np.diff(features, axis=0), axis=1).min() > 0.01
    assert np.unique(features[0]).size == 64


@pytest.mark.parametrize(("channels", "millions"), [(128, 125), (192, 280)])
def test_the_papers_sizes_xs_and_s(channels, millions):
    """Table 6 of the paper: 1000 classes, latents of 64 x 64 x 4."""
    model = edm2.edm2((64, 64, 4), {"label": Kind("index", 1000)}, channels=channels)
    x, cond = jnp.zeros((1, 64, 64, 4)), {"label": jnp.zeros(1, jnp.int32)}
    count = sum(a.size for a in jax.tree.leaves(shapes_of(model, x, jnp.zeros(1), cond)))
    assert round(count / 1e6) == millions


def magnitudes(model, params, *inputs):
    """Name of a block -> the magnitude of its output in the image's middle, where no layer of these
    sees the zeros round the image."""

    @jax.jit
    def run(params):
        found = {}

        def watch(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if isinstance(context.module, Block) and context.method_name == "__call__":
                found[context.module.name] = result[:, 12:-12, 12:-12]
            return result

        with nn.intercept_methods(watch):
            model.apply({"params": params}, *inputs)
        return found

    return {name: magnitude(a) for name, a in run(params).items()}


def test_activations_keep_magnitude_1_through_the_depth():
    """At random weights, as at the start, with what t says switched off and on."""
    model, given = TINY.clone(channels=64, blocks=2, head_channels=64), inputs(32)
    found = magnitudes(model, random_params(model, *given, gain=0.0), *given)
    assert len(found) == 2 + 2 + 3
    assert {name: m for name, m in found.items() if not 0.9 < m < 1.1} == {}


def test_output_is_zero_at_first_and_has_the_gains_magnitude_later():
    given = inputs(16)
    output = compiled(TINY)(random_params(TINY, *given, gain=0.0), *given)
    assert output.shape == given[0].shape and output.dtype == jnp.float32
    assert np.all(output == 0.0)
    assert 0.5 < magnitude(compiled(TINY)(random_params(TINY, *given), *given)) < 1.5


def test_the_size_of_stored_weights_changes_nothing_and_is_forced_to_the_root_of_the_fan_in():
    given = inputs()
    params = random_params(TINY, *given)
    larger = jax.tree.map(lambda a: 7 * a if np.ndim(a) else a, params)
    constrained = TINY.constrain(larger)
    expected = compiled(TINY)(params, *given)
    for other in (larger, constrained):
        np.testing.assert_allclose(compiled(TINY)(other, *given), expected, atol=1e-4)
    assert_normalised(constrained)
    np.testing.assert_allclose(constrained["middle_block0"]["gain"], 1.0)


def assert_normalised(params):
    for a in jax.tree.leaves(params):
        if np.ndim(a):
            norms = np.linalg.norm(np.asarray(a, np.float64).reshape(-1, a.shape[-1]), axis=0)
            np.testing.assert_allclose(norms, math.sqrt(math.prod(a.shape[:-1])), rtol=1e-5)


def test_weights_are_normalised_from_the_start_and_after_every_step():
    config = tiny_config()
    config.model = use("edm2", channels=8, channel_mult=(1,), blocks=1, attention_resolutions=())
    config.model.head_channels = 8
    parts = build(config)
    adam = optax.adam(0.1)
    step = make_train_step(parts.objective, parts.apply_fn, adam, parts.ema, **parts.step_options())
    step = jax.jit(step, compiler_options={"xla_backend_optimization_level": 0})  # compiles sooner
    key = jax.random.key(0, impl="unsafe_rbg")
    state = parts._replace(optimizer=adam).init_state(key)
    first = state.params
    assert_normalised(first)
    batch = {"image": RNG.integers(0, 255, (4, 8, 8, 1), np.uint8), "label": np.arange(4)}
    for _ in range(3):
        state, metrics = step(state, jax.random.key(1), batch)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert_normalised(state.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, first)
    assert moved["conv_in"]["kernel"] > 0.05 and moved["gain_out"] > 0.05


def test_bfloat16_computes_near_float32():
    half, given = TINY.clone(dtype=jnp.bfloat16), inputs()
    params = random_params(TINY, *given)
    exact, output = compiled(TINY)(params, *given), compiled(half)(params, *given)
    assert output.dtype == jnp.float32
    assert 1e-4 < magnitude(output - exact) / magnitude(exact) < 0.05


def test_labels_and_images_change_the_output_of_their_example():
    given = inputs()
    params = random_params(TOLD, *given, told())
    output = lambda cond: compiled(TOLD)(params, *given, cond)
    one, other = output(told()), output(told((0, 3)))
    np.testing.assert_allclose(one[0], other[0], atol=1e-5)
    assert np.abs(one[1] - other[1]).max() > 0.01
    assert np.abs(one - output(told(hint=-1.0))).max() > 0.01


def test_remat_computes_the_same_of_blocks_again():
    given = inputs()
    traced = jax.make_jaxpr(lambda p: TINY.clone(remat=True).apply({"params": p}, *given))
    params = shapes_of(TINY, *given)
    blocks = [e for e in traced(params).jaxpr.eqns if e.primitive.name in ("checkpoint", "remat2")]
    assert len(blocks) == sum("block" in name for name in params) == 5


SMALL = {"channels": 16, "channel_mult": (1, 2), "attention_resolutions": (4,), "head_channels": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels must be above 0, not 0"),
        ({"channel_mult": (1, 0)}, "channel_mult needs one number of at least 1 a level"),
        ({"channel_mult": (1,) * 5}, "images of 8 x 8 cannot be halved 4 times"),
        ({"attention_resolutions": (5,)}, "attention_resolutions has 5, but the levels"),
        ({"head_channels": 12}, "an attention of 32 channels has no heads of 12 channels"),
        ({"balance": 1.5}, "balance must lie in [0, 1], not 1.5"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dtype": "float16"}, "dtype has no 'float16'"),
        ({"shape": (8, 8)}, "shape must be height, width and channels, not (8, 8)"),
        ({"kinds": {"text": Kind("sequence", 8)}}, "the edm2 takes conditions of the kinds index"),
    ],
)
def test_factory_refuses_settings_out_of_range(changes, message):
    given = {"shape": (8, 8, 3), "kinds": {}, **SMALL, **changes}
    with pytest.raises(ValueError, match=re.escape(message)):
        edm2.edm2(**given)
