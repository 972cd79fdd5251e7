"""The kernels' forms against the plain formulas, and which of them a program holds."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from diffusion_jax.models.kernels import attention, convolution, norm, winograd
from diffusion_jax.models.unet import UNet

RNG = np.random.default_rng(0)
# of the largest number; bfloat16 rounds to 2^-9 of a number, a few times in a row
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
DTYPES = tuple(TOLERANCE)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def close(actual, expected, tolerance=1e-5):
    """Within the tolerance of the largest expected number."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def both_modes(form, arguments, dy):
    """A form's value, its gradients, and its value and differential forward."""
    value, back = jax.vjp(form, *arguments)
    tangents = tuple(jnp.roll(a, 1, axis=0) + jnp.ones_like(a) / 4 for a in arguments)
    return (
        form(*arguments),
        value,
        *back(dy.astype(value.dtype)),
        *jax.jvp(form, arguments, tangents),
    )


def assert_same_formula(form, plain, arguments, tolerance):
    """Values and derivatives of a form, jitted, are the plain formula's in float64."""
    shape = jax.eval_shape(form, *arguments).shape
    actual = jax.jit(lambda *a: both_modes(form, a, jnp.asarray(normal_of(shape))))(*arguments)
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(a, np.float64)) for a in arguments)
        expected = both_modes(plain, wide, jnp.asarray(np.float64(normal_of(shape))))
    for one, other in zip(actual, expected, strict=True):
        close(one, other, tolerance)


def normal_of(shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def softmax_attention(q, k, v):
    """Of any precision, float64 as well."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits, axis=-1), v)


ATTENTIONS = [attention.plain, attention.attention, attention.divided_last, attention.by_keys]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ATTENTIONS, ids=lambda form: form.__name__)
def test_attention_is_softmax_attention(form, dtype):
    q, k, v = (jnp.asarray(normal(2, 7, 3, 5), dtype) for _ in range(3))
    assert form(q, k, v).dtype == dtype
    assert_same_formula(form, softmax_attention, (q, k, v), TOLERANCE[dtype])


def test_softmax_is_float32_where_the_products_are_bfloat16():
    """A thousand equal weights of 1 / 1000 sum to 1, which in bfloat16 they would not."""
    q, k = jnp.zeros((1, 1, 1, 8), jnp.bfloat16), jnp.zeros((1, 1000, 1, 8), jnp.bfloat16)
    v = jnp.ones((1, 1000, 1, 8), jnp.bfloat16)
    for form in ATTENTIONS:
        close(form(q, k, v), np.ones((1, 1, 1, 8)), 2**-8)


def test_masked_attention_is_attention_to_the_keys_that_are_there():
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((3, n, 2, 4)).astype("f") for n in (5, 6, 6))
    keep = np.array([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0], [0] * 6], np.float32)
    found = attention.masked_attention(q, k, v, keep)
    for i in range(2):
        there = keep[i] > 0
        own = softmax_attention(*(a[i : i + 1] for a in (q, k[:, there], v[:, there])))
        np.testing.assert_allclose(found[i : i + 1], own, atol=1e-5)
    np.testing.assert_array_equal(found[2], 0)
    gradients = jax.grad(lambda *a: jnp.sum(attention.masked_attention(*a, keep) ** 2), (0, 1, 2))
    assert all(np.isfinite(a).all() for a in gradients(q, 100 * k, v))


@pytest.mark.parametrize("form", ATTENTIONS, ids=lambda form: form.__name__)
def test_attention_stays_finite_for_large_logits(form):
    q, k, v = 1e3 * normal(1, 4, 1, 8), 1e3 * normal(1, 4, 1, 8), normal(1, 4, 1, 8)
    largest = np.argmax(q[0, :, 0] @ k[0, :, 0].T, axis=1)
    close(form(q, k, v)[0, :, 0], v[0, :, 0][largest])


def triton(q, k, v):
    return attention.triton(q, k, v, interpret=True)


# JAX 0.11 says that the backend will go, and with it this form
passing = pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")


@passing
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [16, 128])
def test_tritons_attention_is_softmax_attention(length, dtype):
    """Of value and gradients, all that a fused form has."""
    q, k, v = (jnp.asarray(normal(1, length, 2, 16), dtype) for _ in range(3))
    assert_same_in_reverse(triton, softmax_attention, (q, k, v), 4 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tpus_attention_is_softmax_attention(dtype):
    q, k, v = (jnp.asarray(normal(1, 128, 1, 128), dtype) for _ in range(3))
    assert attention.fits_tpu(q) == (dtype == "bfloat16")
    with pltpu.force_tpu_interpret_mode():
        assert_same_in_reverse(attention.flash, softmax_attention, (q, k, v), 4 * TOLERANCE[dtype])


def in_reverse(form, arguments, dy):
    value, back = jax.vjp(form, *arguments)
    return value, *back(dy.astype(value.dtype))


def assert_same_in_reverse(form, plain, arguments, tolerance):
    """Value and gradients of a form are the plain formula's in float64."""
    dy = normal_of(jax.eval_shape(form, *arguments).shape)
    actual = in_reverse(form, arguments, jnp.asarray(dy))
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(a, np.float64)) for a in arguments)
        expected = in_reverse(plain, wide, jnp.asarray(np.float64(dy)))
    for one, other in zip(actual, expected, strict=True):
        close(one, other, tolerance)


@passing
def test_a_fused_form_is_taken_where_it_takes_the_arrays():
    """cuDNN's takes bfloat16 and heads of 8, 16, ... 128 channels; any length."""
    shape = lambda length, d, dtype: jax.ShapeDtypeStruct((2, length, 3, d), dtype)
    calls = lambda q, platform, kind="auto": fused_calls(
        lambda q, k, v: attention.attention(q, k, v, kind), (q, q, q), platform
    )
    half, single = jnp.bfloat16, jnp.float32
    for length in (1, 64, 77, 256):
        assert calls(shape(length, 64, half), "cuda") == {"cudnn": 1}
    assert calls(shape(64, 136, half), "cuda") == calls(shape(64, 12, half), "cuda") == {}
    assert calls(shape(64, 64, single), "cuda") == calls(shape(64, 64, half), "cpu") == {}
    assert calls(shape(64, 64, half), "rocm") == calls(shape(64, 64, half), "tpu") == {}
    assert calls(shape(64, 64, half), "cuda", "plain") == {}
    if jax.__version_info__ < (0, 11):  # later ones lower it on a machine with a GPU alone
        assert calls(shape(64, 64, half), "cuda", "pallas") == {"triton": 1}
    assert calls(shape(256, 128, half), "tpu", "pallas") == {"mosaic": 1}
    assert calls(shape(256, 64, half), "tpu", "pallas") == {}
    for kind in ("auto", "plain"):
        assert calls(shape(256, 128, half), "tpu", kind) == {}


def test_a_length_that_tritons_form_does_not_take_is_plain():
    q = jax.ShapeDtypeStruct((2, 77, 3, 64), jnp.bfloat16)
    form = lambda q, k, v: attention.attention(q, k, v, "pallas")
    assert fused_calls(form, (q, q, q), "cuda") == {}


CALLS = {"cudnn": "__cudnn$fmha", "triton": "triton", "mosaic": "tpu_custom_call"}


def fused_calls(function, arguments, platform):
    """How many calls of fused kernels, by whose they are, a program for a platform has."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    targets = re.findall(r"stablehlo\.custom_call @([\w$.]+)", text)
    found = {name: sum(sign in t for t in targets) for name, sign in CALLS.items()}
    return {name: number for name, number in found.items() if number}


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 20, 6), (3, 4, 5)])
def test_winograd_is_the_plain_convolution(shape):
    arguments = normal(*shape, 32), normal(3, 3, 32, 48) / 17
    assert_same_formula(winograd.convolve, convolution.plain, arguments, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution_is_the_plain_one(dtype):
    x, kernel = normal(2, 16, 8, 32), normal(3, 3, 32, 32) / 17
    arguments = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    assert convolution.convolve(*arguments).dtype == dtype
    assert_same_formula(convolution.convolve, convolution.plain, arguments, TOLERANCE[dtype])


def test_winograd_pays_for_large_images_of_many_channels_in_float32():
    image = lambda size, channels, dtype=jnp.float32: jax.ShapeDtypeStruct(
        (1, size, size, channels), dtype
    )
    kernel = lambda size, channels: jax.ShapeDtypeStruct(
        (size, size, channels, channels), jnp.float32
    )
    assert winograd.pays(image(16, 32), kernel(3, 32))
    for x, k in [
        (image(8, 32), kernel(3, 32)),
        (image(18, 32), kernel(3, 32)),
        (image(16, 16), kernel(3, 16)),
    ]:
        assert not winograd.pays(x, k)
    assert not winograd.pays(image(16, 32), kernel(1, 32))
    assert not winograd.pays(image(16, 32, jnp.bfloat16), kernel(3, 32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_upsampled_convolution_is_upsampling_then_convolution(size, dtype):
    x, kernel = normal(2, *size, 8), normal(3, 3, 8, 6)
    arguments = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)
    plain = convolution.plain_upsampled
    for form in (convolution.upsampled_convolve, convolution.phases, convolution.transposed):
        assert_same_formula(form, plain, arguments, TOLERANCE[dtype])
    twice = jax.image.resize(x, (2, 2 * size[0], 2 * size[1], 8), "nearest")
    np.testing.assert_array_equal(convolution.upsample(x), twice)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_group_norm_is_the_plain_one(moved, silu, dtype):
    x, by, to = jnp.asarray(3 + 2 * normal(2, 4, 6, 96), dtype), normal(2, 96), normal(2, 96)
    arguments = (x, 1 + normal(96), normal(96), *((by, to) if moved else ()))
    form = lambda *a: norm.group_norm(*a, silu=silu)
    assert form(*arguments).dtype == dtype
    # x is large beside its deviation: float32 squares lose a digit of it
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in arguments]
        exact = reference_norm(*wide, silu=silu)
    rounding = 1e-5 if dtype == "float32" else 2**-8
    close(form(*arguments), exact, rounding)
    close(norm.plain(*arguments, silu=silu), exact, rounding)
    plain = lambda *a: reference_norm(*a, silu=silu)
    assert_same_formula(form, plain, arguments, 3 * TOLERANCE[dtype])


def reference_norm(x, scale, bias, by=None, to=None, silu=False):
    """Of any precision: three channels are a group of 96's 32."""
    b, h, w, c = x.shape
    group = x.reshape(b, h, w, 32, c // 32)
    centred = group - group.mean((1, 2, 4), keepdims=True)
    y = centred / jnp.sqrt((centred**2).mean((1, 2, 4), keepdims=True) + 1e-5)
    y = y.reshape(x.shape) * scale + bias
    y = y if by is None else y * (1 + by[:, None, None]) + to[:, None, None]
    return y / (1 + jnp.exp(-y)) if silu else y


NORM_FORMS = {  # (form, its gradients), of those that in_forms chooses from
    "cpu": (
        norm.two_passes(norm.silu_by_tanh),
        functools.partial(norm.gradients, norm.through_silu_by_tanh, 0.5, False),
    ),
    "cuda": (
        norm.two_passes(jax.nn.silu),
        functools.partial(norm.gradients, norm.through_silu, 1.0, True),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("platform", NORM_FORMS)
def test_every_form_of_the_norm_has_the_plain_ones_gradients(platform, dtype):
    x = jnp.asarray(3 + 2 * normal(2, 4, 6, 96), dtype)
    arguments = (x, 1 + normal(96), normal(96), normal(2, 96), normal(2, 96))
    form, gradients = NORM_FORMS[platform]
    dy = normal_of(x.shape)
    found = (form(*arguments), *gradients(arguments, jnp.asarray(dy, dtype)))
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(a, np.float64)) for a in arguments)
        plain = lambda *a: reference_norm(*a, silu=True)
        expected = in_reverse(plain, wide, jnp.asarray(np.float64(dy)))
    for one, other in zip(found, expected, strict=True):
        close(one, other, 3 * TOLERANCE[dtype])


def test_a_norm_keeps_its_arguments_alone():
    """What the backward pass keeps of a norm with SiLU is the image it was given, and nothing else
    of its size."""
    x, vector = normal(2, 8, 8, 32), normal(32)
    form = lambda *a: norm.group_norm(*a, silu=True)
    kept = jax.tree.leaves(jax.vjp(form, x, vector, vector, normal(2, 32), normal(2, 32))[1])
    assert sum(a.size == x.size for a in kept) == 1


FORMULAS = {
    "attention": (attention.attention, [(1, 3, 2, 4)] * 3),
    "norm": (functools.partial(norm.group_norm, silu=True), [(2, 2, 2, 8), (8,), (8,)]),
    "upsampled": (convolution.upsampled_convolve, [(1, 2, 2, 3), (3, 3, 3, 2)]),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_chosen_form_has_derivatives_of_every_mode_and_order(name):
    """Second derivatives by four orders of the modes, batches of gradients and what is computed
    again are JAX's own derivatives of the plain formula."""
    formula, shapes = FORMULAS[name]
    arguments, moved = ([normal(*s) for s in shapes] for _ in range(2))
    plain = {
        "attention": softmax_attention,
        "norm": lambda *a: norm.plain(*a, silu=True),
        "upsampled": convolution.plain_upsampled,
    }[name]

    def derivatives(form):
        f = lambda *a: jnp.sum(jnp.sin(form(*a)))
        every = tuple(range(len(arguments)))
        grad = jax.grad(f, every)
        along = lambda *a: jax.jvp(f, a, tuple(moved))[1]
        squared = lambda *a: sum(jnp.sum(g * m) for g, m in zip(grad(*a), moved, strict=True))
        two = [jnp.stack([a, m]) for a, m in zip(arguments, moved, strict=True)]
        return (
            jax.grad(squared, every)(*arguments),
            jax.grad(along, every)(*arguments),
            jax.jvp(grad, tuple(arguments), tuple(moved))[1],
            jax.jvp(along, tuple(arguments), tuple(moved))[1],
            jax.vmap(grad)(*two),
            jax.vmap(lambda *m: jax.jvp(f, tuple(arguments), m)[1])(*two),
            jax.grad(jax.checkpoint(f), every)(*arguments),
        )

    actual, expected = (jax.jit(derivatives, static_argnums=0)(f) for f in (formula, plain))
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        close(one, other, 1e-4)


NETWORK = UNet(out_channels=3, channels=32, channel_mult=(1,), blocks=1, attention_factors=())
X = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
T = jax.ShapeDtypeStruct((2,), jnp.float32)


@pytest.fixture(scope="module")
def shapes():
    init = lambda key, x, t: NETWORK.init(key, x, t)["params"]
    return jax.eval_shape(init, jax.random.key(0), X, T)


def forward(params, x, t):
    return NETWORK.apply({"params": params}, x, t)


def program(function, platform, shapes):
    """The StableHLO text of a function, exported on this machine for a platform."""
    return jax.export.export(jax.jit(function), platforms=[platform])(shapes, X, T).mlir_module()


def count(text, operation, shape=""):
    return len(re.findall(rf"stablehlo\.{operation}\b.*{shape}", text))


def convolutions(shapes):
    """(all, those of 3 x 3 and at least 32 channels) of the network's kernels."""
    leaves = [a.shape for a in jax.tree.leaves(shapes) if a.ndim == 4]
    return len(leaves), sum(s[:2] == (3, 3) and min(s[2:]) >= 32 for s in leaves)


def scales_before_silu(shapes):
    """The norms that SiLU follows: all but the attention's."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    return [path for path in paths if path[-1].key == "scale" and "attention" not in path[0].key]


@pytest.mark.parametrize("platform", ["cuda", "tpu", "rocm"])
def test_a_program_for_another_platform_holds_no_form_of_the_cpu(platform, shapes):
    text = program(forward, platform, shapes)
    assert count(text, "convolution") == convolutions(shapes)[0]
    assert count(text, "tanh") == 0
    weights = "2x1x256x256xf32"  # the softmax's weights are divided, as written down
    assert count(text, "divide", weights) == 1


def test_a_program_for_the_cpu_holds_its_forms(shapes):
    text = program(forward, "cpu", shapes)
    plain, large = convolutions(shapes)
    assert large == 10  # of five residual blocks
    assert count(text, "convolution") == plain - large + 6 * large
    assert count(text, "tanh") == len(scales_before_silu(shapes))
    assert count(text, "divide", "2x1x256x256xf32") == 0


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_gradient_holds_plain_convolutions_alone(platform, shapes):
    """Three a layer: the value, the image's gradient and the kernel's; the first one has no
    gradient of its image."""
    loss = lambda params, x, t: jnp.sum(forward(params, x, t) ** 2)
    text = program(jax.grad(loss), platform, shapes)
    assert count(text, "convolution") == 3 * convolutions(shapes)[0] - 1
