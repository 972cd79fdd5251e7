"""The U-Net and its parts. That it computes what its originals compute is tested with their
weights, in tests/interop/test_state_dicts.py."""

import functools
import inspect
import math
import re

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.settings import FREE
from diffusion_jax.core.types import Kind
from diffusion_jax.models import unet
from diffusion_jax.models.embeddings import sinusoidal
from diffusion_jax.models.unet import UNet

SMALL = UNet(
    out_channels=3, channels=16, channel_mult=(1, 2), blocks=1, attention_factors=(2,), heads=2
)
TINY = SMALL.clone(channel_mult=(1,), attention_factors=(1,))  # compiles sooner
LABELLED = TINY.clone(kinds=(("label", Kind("index", 4)),))


def inputs(batch=2, height=8, width=8, channels=3):
    x = np.random.default_rng(0).standard_normal((batch, height, width, channels), np.float32)
    return x, np.linspace(1.0, 999.0, batch, dtype=np.float32)


def init_shapes(model, x, t, cond=None):
    return jax.eval_shape(lambda key: model.init(key, x, t, cond)["params"], jax.random.key(0))


def assert_refused(message, model, *inputs):
    """`match` alone would see JAX's notes on the error, too."""
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        init_shapes(model, *inputs)
    assert str(error.value) == message


@functools.cache
def random_params(model, channels=3):
    """Parameters none of which is zero, of about the size that keeps a layer's output near its
    input's."""
    cond = {name: np.zeros(1, np.int32) for name, _ in model.kinds}
    rng = np.random.default_rng(1)
    draw = lambda a: (
        rng.standard_normal(a.shape, np.float32) / math.sqrt(math.prod(a.shape[:-1]) or 1)
    )
    return jax.tree.map(draw, init_shapes(model, *inputs(1, channels=channels), cond))


@functools.cache
def compiled(model, train=False):
    def apply(params, x, t, cond=None, key=None):
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, x, t, cond, train=train, rngs=rngs)

    return jax.jit(apply)


@pytest.mark.parametrize(("height", "width", "channels"), [(8, 8, 1), (8, 12, 3), (16, 4, 5)])
@pytest.mark.parametrize("resample_blocks", [False, True])
def test_output_has_the_shape_of_the_input(height, width, channels, resample_blocks):
    model = SMALL.clone(out_channels=2 * channels, resample_blocks=resample_blocks)
    x, t = inputs(2, height, width, channels)
    output, _ = jax.eval_shape(lambda key: model.init_with_output(key, x, t), jax.random.key(0))
    assert output.shape == (2, height, width, 2 * channels)
    assert output.dtype == jnp.float32


def test_output_is_zero_at_initialisation():
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in half the time
    output, variables = jax.jit(TINY.init_with_output)(key, *inputs())
    assert np.all(output == 0.0)
    # so is the second convolution of every residual block and the projection of every attention,
    # and nothing else
    flat = jax.tree_util.tree_leaves_with_path(variables["params"])
    zero = {path[-2].key for path, a in flat if path[-1].key == "kernel" and not np.any(a)}
    assert zero == {"conv2", "out", "conv_out"}


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters_and_output():
    half = SMALL.clone(dtype=jnp.bfloat16)
    x, t = inputs()
    assert {a.dtype for a in jax.tree.leaves(init_shapes(half, x, t))} == {jnp.dtype("float32")}
    params = random_params(SMALL)
    exact, output = compiled(SMALL)(params, x, t), compiled(half)(params, x, t)
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03  # bfloat16 has a relative precision of 2^-8 = 0.004
    traced = str(jax.make_jaxpr(lambda p: half.apply({"params": p}, x, t))(params))
    convolutions = [line for line in traced.splitlines() if "= conv_general_dilated[" in line]
    assert len(convolutions) > 10
    assert all(":bf16[" in line for line in convolutions[:-1])
    assert ":f32[" in convolutions[-1]  # the last one makes the prediction


def test_labels_change_the_output():
    params, (x, t) = random_params(LABELLED), inputs()
    told = lambda labels: compiled(LABELLED)(params, x, t, {"label": np.array(labels)})
    a, b = told([0, 1]), told([0, 3])
    np.testing.assert_array_equal(a[0], b[0])
    assert np.abs(a[1] - b[1]).max() > 0.01


@pytest.mark.parametrize(("height", "width"), [(9, 8), (8, 10)])
def test_image_that_cannot_be_halved(height, width):
    model = SMALL.clone(channel_mult=(1, 1, 1))
    message = f"images of {height} x {width} cannot be halved 2 times, once between two levels"
    assert_refused(message, model, *inputs(2, height, width))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "cannot be cut into 3 heads"),
        ({"heads": 0}, "cannot be cut into 0 heads"),
        ({"head_channels": 12}, "has no heads of 12 channels"),
        ({"head_channels": 64}, "has no heads of 64 channels"),
    ],
)
def test_heads_that_do_not_divide_the_channels(changes, message):
    assert_refused(f"an attention of 32 channels {message}", SMALL.clone(**changes), *inputs())


def test_dropout_acts_only_in_training():
    model, (x, t), params = TINY.clone(dropout=0.5), inputs(), random_params(TINY)
    train = functools.partial(compiled(model, train=True), params, x, t, None)
    one, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    exact = compiled(TINY)(params, x, t)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    assert np.abs(one - exact).max() > 0.01
    np.testing.assert_array_equal(compiled(model)(params, x, t), exact)


def test_batch_of_one_is_the_batch():
    params, (x, t) = random_params(SMALL), inputs()
    together = compiled(SMALL)(params, x, t)
    alone = [compiled(SMALL)(params, x[i : i + 1], t[i : i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("dim", [2, 8, 9])
def test_timestep_embedding_is_its_closed_form(dim):
    half = dim // 2
    for t, features in zip([0, 1.5, 999], sinusoidal(np.array([0, 1.5, 999]), dim), strict=True):
        angles = [t * 10000 ** (-i / half) for i in range(half)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (dim % 2)
        np.testing.assert_allclose(features, expected, atol=1e-4)  # float32 angles up to 999


def test_halving_takes_means_and_doubling_repeats():
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(unet.downsample(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_array_equal(
        unet.upsample(x[:, :2, :2])[0, :, :, 0], np.kron([[0, 1], [4, 5]], np.ones((2, 2)))
    )


@pytest.mark.parametrize("name", ["plain", "learned_sigma", "class_cond", "adm"])
def test_parameter_count_is_the_peers(reference, name):
    recorded = reference("unet.json")[name]
    config = recorded["config"]
    cond = {"label": np.zeros(2, np.int32)} if "num_classes" in config else {}
    model = UNet(
        out_channels=config["out_channels"],
        channels=config["model_channels"],
        channel_mult=tuple(config["channel_mult"]),
        blocks=config["num_res_blocks"],
        attention_factors=tuple(config["attention_resolutions"]),
        scale_shift=config.get("use_scale_shift_norm", False),
        resample_blocks=config.get("resblock_updown", False),
        kinds=(("label", Kind("index", config["num_classes"])),) if cond else (),
    )
    params = init_shapes(model, *inputs(channels=config["in_channels"]), cond)
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(params)) == recorded["count"]


def rematerialised():
    """(gradients of a dropped-out network at 16 x 16, jitted, the model's parameters) without and
    with `remat`."""
    x, t = inputs(4, 16, 16)
    model = TINY.clone(dropout=0.3)
    shapes = jax.tree.map(jnp.shape, init_shapes(model, x, t))
    assert jax.tree.map(jnp.shape, init_shapes(model.clone(remat=True), x, t)) == shapes
    for remat in (False, True):
        apply = functools.partial(
            model.clone(remat=remat).apply, train=True, rngs={"dropout": jax.random.key(5)}
        )
        yield jax.jit(
            jax.grad(lambda params, apply=apply: jnp.mean(apply({"params": params}, x, t) ** 2))
        )


def test_rematerialised_blocks_give_the_same_gradients_in_less_memory():
    params, results, memory = random_params(TINY.clone(dropout=0.3)), [], []
    # the CPU's usual order of operations favours speed and keeps all that it can
    options = (
        {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        if jax.default_backend() == "cpu"
        else None
    )
    for gradient in rematerialised():
        compiled = gradient.lower(params).compile(compiler_options=options)
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
        results.append(compiled(params))
    scale = max(np.abs(a).max() for a in jax.tree.leaves(results[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale), *results
    )
    assert memory[1] < 0.95 * memory[0]


def equations(jaxpr, platform):
    """All equations of a jaxpr as it is lowered for a platform, with those inside of others."""
    for equation in jaxpr.eqns:
        yield equation
        inner = jax.extend.core.jaxprs_in_params(equation.params)
        if choices := equation.params.get("branches_platforms"):
            fits = [names is None or platform in names for names in choices]
            inner = [equation.params["branches"][fits.index(True)].jaxpr]
        for one in inner:
            yield from equations(one, platform)


def dtypes(found, *names):
    return {
        str(v.aval.dtype)
        for equation in found
        if equation.primitive.name in names
        for v in equation.invars
        if v.aval.shape
    }


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_in_bfloat16_norms_softmax_embedding_and_loss_are_float32_and_the_products_are_not(
    scale_shift, platform
):
    told = {"kinds": (("label", Kind("index", 4)), ("augmentation", Kind("vector", 9)))}
    model = SMALL.clone(dtype=jnp.bfloat16, scale_shift=scale_shift, **told)
    x, t = inputs()
    cond = {"label": np.zeros(2, np.int32), "augmentation": np.zeros((2, 9), np.float32)}
    params = init_shapes(model, x, t, cond)
    loss = lambda params: jnp.mean(model.apply({"params": params}, x, t, cond) ** 2)
    for function in (loss, jax.grad(loss)):
        traced = jax.make_jaxpr(function)(params)
        assert {str(v.aval.dtype) for v in traced.jaxpr.outvars} == {"float32"}
        found = list(equations(traced.jaxpr, platform))
        # sums (of the norms' statistics, the softmax and the loss), roots, exponentials and the
        # waves of t
        assert dtypes(found, "rsqrt", "exp", "sin", "cos", "reduce_max", "square") == {"float32"}
        if function is loss:
            assert dtypes(found, "reduce_sum") == {"float32"}
            products = [e for e in found if e.primitive.name == "dot_general"]
            embeds = [
                e for e in products if e.invars[0].aval.shape[:-1] == t.shape
            ]  # [B, features] by a matrix
            assert len(embeds) == 3 + sum(
                "block" in name for name in params
            )  # time1, time2, augmentation, every block's
            assert dtypes(embeds, "dot_general") == {"float32"}
            rest = [e for e in products if e not in embeds]
            attentions = sum("attention" in name for name in params)
            # qkv and the projection, and, where no kernel is fused, q k^T and the softmax's product
            # with v, which takes it as bfloat16, too
            assert len(rest) == (4 if platform == "cpu" else 2) * attentions
            assert dtypes(rest, "dot_general") == {"bfloat16"}
            convolutions = [e for e in found if e.primitive.name == "conv_general_dilated"]
            assert dtypes(convolutions[:-1], "conv_general_dilated") == {"bfloat16"}
            assert dtypes(convolutions[-1:], "conv_general_dilated") == {"float32"}
            softmax = [
                e for e in found if e.primitive.name == "exp" and e.outvars[0].aval.ndim >= 3
            ]
            assert len(softmax) == (attentions if platform == "cpu" else 0)


def test_bfloat16_tells_neighbouring_t_apart():
    model = TINY.clone(dtype=jnp.bfloat16)
    params, x = random_params(TINY), np.repeat(inputs(1)[0], 2, axis=0)
    t = np.array([500.0, 501.0], np.float32)

    @jax.jit  # which computes no more of the network than is returned
    def embedded(params):
        seen = []

        def watch(call, args, kwargs, context):
            result = call(*args, **kwargs)
            if context.module.name == "time2":
                seen.append(result)
            return result

        with nn.intercept_methods(watch):
            model.apply({"params": params}, x, t)
        return seen[0]

    embedding = embedded(params)
    sinusoids = sinusoidal(t, 16)
    hidden = nn.silu(sinusoids @ params["time1"]["kernel"] + params["time1"]["bias"])
    exact = hidden @ params["time2"]["kernel"] + params["time2"]["bias"]
    assert embedding.dtype == jnp.float32
    np.testing.assert_allclose(embedding[1] - embedding[0], exact[1] - exact[0], atol=1e-5)


def test_remat_computes_each_block_again_and_may_change_in_a_workdir():
    assert FREE in inspect.signature(unet.unet).parameters["remat"].annotation.__metadata__
    settings = {"channels": 16, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()}
    model = unet.unet((8, 8, 1), {}, **settings, remat=True)
    x, t = inputs(channels=1)
    params = init_shapes(model, x, t)
    traced = jax.make_jaxpr(lambda params: model.apply({"params": params}, x, t))(params)
    rematerialised = [
        equation
        for equation in traced.jaxpr.eqns
        if equation.primitive.name in ("checkpoint", "remat2", "remat")
    ]
    # a norm with SiLU alone has no product
    kept = [equation for equation in rematerialised if "dot_general" in str(equation)]
    assert len(kept) == sum("block" in name or "attention" in name for name in params)


SHAPE, KINDS = (8, 8, 3), {"label": Kind("index", 4), "augmentation": Kind("vector", 9)}


def factory(shape=SHAPE, kinds=KINDS, **changes):
    small = {"channels": 16, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
    return unet.unet(shape, kinds, **(small | {"heads": 2} | changes))


def test_factory_makes_the_network_of_its_settings():
    told = {"kinds": (("label", Kind("index", 4)), ("augmentation", Kind("vector", 9)))}
    assert factory() == SMALL.clone(**told)
    assert factory(learned_variance=True).out_channels == 6
    assert factory(dtype="bfloat16").dtype == jnp.bfloat16
    assert factory((16, 8, 1), {}, attention_resolutions=(8, 16)).attention_factors == (2, 1)


def test_equal_settings_make_equal_networks():
    assert factory() == factory() and hash(factory()) == hash(factory(channel_mult=[1, 2]))
    assert factory() != factory(dropout=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels must be above 0, not 0"),
        ({"blocks": 0}, "blocks must be above 0, not 0"),
        ({"heads": 0}, "heads must be above 0, not 0"),
        ({"heads": 3}, "an attention of 32 channels cannot be cut into 3 heads"),
        ({"head_channels": -1}, "head_channels must be at least 0, not -1"),
        ({"head_channels": 12}, "an attention of 32 channels has no heads of 12 channels"),
        ({"channel_mult": ()}, "channel_mult needs one number of at least 1 a level, not ()"),
        ({"channel_mult": (1, 0)}, "channel_mult needs one number of at least 1 a level"),
        ({"channel_mult": (1,) * 5}, "images of 8 x 8 cannot be halved 4 times"),
        (
            {"attention_resolutions": (5,)},
            "attention_resolutions has 5, but the levels have heights [8, 4]",
        ),
        ({"time_scale": 0.0}, "time_scale must be above 0, not 0.0"),
        ({"time_scale": math.inf}, "time_scale must be finite, not inf"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dropout": math.nan}, "dropout must be at least 0 and below 1, not nan"),
        ({"dtype": "float64"}, "dtype must be float32 or bfloat16, not 'float64'"),
        ({"shape": (8, 8)}, "shape must be height, width and channels, not (8, 8)"),
        ({"shape": (8, 0, 3)}, "shape must be height, width and channels, not (8, 0, 3)"),
        ({"kinds": {"text": Kind("given", 8)}}, "the unet takes conditions of the kinds index"),
    ],
)
def test_factory_refuses_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        factory(**changes)


def test_float16_is_refused_with_what_to_take_in_its_place():
    """A T4 has no bfloat16: it takes float32."""
    with pytest.raises(ValueError, match="no 'float16'.* use bfloat16.* or float32 .* T4"):
        factory(dtype="float16")
