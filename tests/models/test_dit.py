"""The diffusion transformer against NumPy, the papers' counts and the laws of its parts. That it
computes what its originals compute is tested with their names, in tests/interop/test_dit_names.py.
"""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.settings import FREE
from diffusion_jax.core.types import Kind, Kinds
from diffusion_jax.devices import flops
from diffusion_jax.models import embeddings
from diffusion_jax.models.dit import DiT, dit, image, patches

LABEL = (("label", Kind("index", 4)),)
TEXT = (("text", Kind("sequence", 6)),)
PAPER = DiT(out_channels=3, width=16, depth=2, heads=2, kinds=LABEL)
MODERN = PAPER.clone(
    norm="rms", qk_norm=True, positions="rotary", mlp="swiglu", told="tokens", long_skips=True
)
ADAPTED = MODERN.clone(told="adaln", bottleneck=5, positions="none", kinds=LABEL + TEXT)
TOLD = MODERN.clone(norm="layer", kinds=LABEL + TEXT)
SHORT = {"context": 8, "context_depth": 0}
VARIANTS = {
    "paper": PAPER,
    "modern": MODERN,
    "adapted": ADAPTED.clone(**SHORT),
    "told": TOLD.clone(**SHORT),
}


def inputs(batch=2, height=4, width=6, channels=3):
    x = np.random.default_rng(0).standard_normal((batch, height, width, channels), np.float32)
    return x, np.linspace(1.0, 999.0, batch, dtype=np.float32)


def told(model, batch=2, length=3):
    """Labels, and texts the second half of which is not there."""
    vectors = np.random.default_rng(2).standard_normal((batch, length, 6), np.float32)
    keep = np.broadcast_to(
        (np.arange(length) < (length + 1) // 2).astype(np.float32), (batch, length)
    )
    known = {"label": np.arange(batch), "text": (vectors, keep)}
    return {name: known[name] for name, _ in model.kinds}


def init_shapes(model, *arguments):
    return jax.eval_shape(lambda key: model.init(key, *arguments)["params"], jax.random.key(0))


@functools.cache
def random_params(model):
    """Parameters none of which is zero, of about the size that keeps a layer's output near its
    input's."""
    rng = np.random.default_rng(1)
    draw = lambda a: (
        rng.standard_normal(a.shape, np.float32) / math.sqrt(math.prod(a.shape[:-1]) or 1)
    )
    return jax.tree.map(draw, init_shapes(model, *inputs(), told(model)))


@functools.cache
def compiled(model, train=False):
    def apply(params, x, t, cond=None, key=None):
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, x, t, cond, train=train, rngs=rngs)

    return jax.jit(apply)


every_variant = pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS)


@every_variant
def test_output_is_float32_and_zero_at_initialisation(model):
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles in half the time
    output, variables = jax.jit(model.init_with_output)(key, *inputs(), told(model))
    assert output.shape == (2, 4, 6, 3) and output.dtype == jnp.float32
    assert np.all(output == 0.0)
    flat = jax.tree_util.tree_leaves_with_path(variables["params"])
    zero = {path[-2].key for path, a in flat if path[-1].key == "kernel" and not np.any(a)}
    adapted = {"modulation", "modulation_out"} if model.told == "adaln" else set()
    crossed = {"out"} if model.told == "adaln" and len(model.kinds) == 2 else set()
    assert zero == {"dense_out"} | adapted | crossed


# The networks by NumPy, in float64, one example at a time.


def silu(a):
    return a / (1 + np.exp(-a))


def gelu(a):
    return 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))


def dense(layer, a):
    return a @ layer["kernel"] + layer.get("bias", 0.0)


def norm(a, kind, scale=1.0, shift=0.0):
    a = a - a.mean(axis=-1, keepdims=True) if kind == "layer" else a
    return a / np.sqrt((a**2).mean(axis=-1, keepdims=True) + 1e-6) * scale + shift


def own_norm(layer, a, kind):
    return norm(a, kind, layer["scale"], layer.get("bias", 0.0))


def sine_and_cosine(place, dim):
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.sin(place * frequencies), np.cos(place * frequencies)])


def turned(a, places, others):
    """Pairs of numbers as complex ones, times e^(i angle)."""
    quarter = a.shape[-1] // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    angles = [np.concatenate([column * frequencies, row * frequencies]) for row, column in places]
    angles = np.concatenate([np.zeros((others, 2 * quarter)), angles])
    pairs = (a[..., : 2 * quarter] + 1j * a[..., 2 * quarter :]) * np.exp(1j * angles)[:, None]
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attended(model, block, a, places, others):
    q, k, v = dense(block["self"]["qkv"], a).reshape(len(a), 3, model.heads, -1).swapaxes(0, 1)
    if model.qk_norm:
        q = own_norm(block["self"]["norm_q"], q, "rms")
        k = own_norm(block["self"]["norm_k"], k, "rms")
    if model.positions == "rotary":
        q, k = turned(q, places, others), turned(k, places, others)
    weights = np.exp(np.einsum("nhd,mhd->hnm", q, k) / np.sqrt(q.shape[-1]))
    weights /= weights.sum(axis=-1, keepdims=True)
    return dense(block["self"]["out"], np.einsum("hnm,mhd->nhd", weights, v).reshape(a.shape))


def perceptron(model, layers, a):
    h = dense(layers["dense1"], a)
    if model.mlp == "gelu":
        return dense(layers["dense2"], gelu(h))
    gate, value = np.split(h, 2, axis=-1)
    return dense(layers["dense2"], silu(gate) * value)


def by_hand(model, params, x, t, label):
    """The network's output [H, W, out_channels] for an example without text."""
    size, (height, width, _) = model.patch, x.shape
    places = [(i, j) for i in range(height // size) for j in range(width // size)]
    cut = [x[i * size :, j * size :][:size, :size].ravel() for i, j in places]
    h = dense(params["patch"], np.array(cut))
    if model.positions == "sincos":
        waves = lambda place: sine_and_cosine(place, model.width // 2)
        h = h + [np.concatenate([waves(column), waves(row)]) for row, column in places]
    angles = t * 10000.0 ** (-np.arange(128) / 128)
    wave = np.concatenate([np.cos(angles), np.sin(angles)])
    of_t = dense(params["time2"], silu(dense(params["time1"], wave)))
    of_label = params["label"]["embedding"][label]
    adapted, others = silu(of_t + of_label), 0
    if model.told == "tokens":
        h, others = np.concatenate([[of_t, of_label], h]), 2
    gave = []
    for i in range(model.depth):
        block = params[f"block{i}"]
        if model.long_skips and i >= model.depth - model.depth // 2:
            h = dense(params[f"skip{i}"], np.concatenate([h, gave.pop()], axis=-1))
        if model.told == "adaln":
            b1, s1, g1, b2, s2, g2 = np.split(dense(block["modulation"], adapted), 6)
            h = h + g1 * attended(model, block, norm(h, model.norm, 1 + s1, b1), places, others)
            h = h + g2 * perceptron(model, block["mlp"], norm(h, model.norm, 1 + s2, b2))
        else:
            h = h + attended(model, block, own_norm(block["norm1"], h, model.norm), places, others)
            h = h + perceptron(model, block["mlp"], own_norm(block["norm2"], h, model.norm))
        if i < model.depth // 2:
            gave.append(h)
    h = h[others:]
    if model.told == "adaln":
        shift, scale = np.split(dense(params["modulation_out"], adapted), 2)
        h = norm(h, model.norm, 1 + scale, shift)
    else:
        h = own_norm(params["norm_out"], h, model.norm)
    out = np.zeros((height, width, model.out_channels))
    for (i, j), token in zip(places, dense(params["dense_out"], h), strict=True):
        square = token.reshape(size, size, model.out_channels)
        out[i * size : (i + 1) * size, j * size : (j + 1) * size] = square
    return out


@pytest.mark.parametrize("model", [PAPER, MODERN, MODERN.clone(depth=3)], ids=["old", "new", "odd"])
def test_network_is_the_papers_by_numpy(model):
    params, (x, _), t = random_params(model), inputs(), np.array([3.0, 70.0], np.float32)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected = [by_hand(model, exact, x[i].astype(np.float64), t[i], i) for i in range(2)]
    actual = compiled(model)(params, x, t, told(model))
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_patches_are_rows_of_squares_and_back():
    x, _ = inputs(2, 6, 9)
    cut = patches(x, 3)
    np.testing.assert_array_equal(cut[1, 4], x[1, 3:6, 3:6].ravel())
    np.testing.assert_array_equal(image(cut, 3, 6, 9), x)


def test_without_positions_the_output_permutes_with_its_patches():
    model, (x, t) = PAPER.clone(positions="none"), inputs()
    order = np.random.default_rng(3).permutation(6)
    moved = image(patches(x, 2)[:, order], 2, 4, 6)
    one, other = (
        np.asarray(compiled(model)(random_params(model), a, t, told(model))) for a in (x, moved)
    )
    np.testing.assert_allclose(patches(other, 2), patches(one, 2)[:, order], atol=1e-5)
    told_places = compiled(PAPER)(random_params(PAPER), moved, t, told(PAPER))
    assert np.abs(patches(told_places, 2) - patches(one, 2)[:, order]).max() > 0.01


def test_rotated_queries_and_keys_know_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 8))
    turn = embeddings.grid_rotations(5, 7, 8)
    as_head = lambda a: jnp.asarray(a, jnp.float32)[None, None, None]
    at = lambda a, row, column: embeddings.rotated(as_head(a), turn[:, [7 * row + column]]).ravel()
    product = lambda i, j, m, n: float(at(q, i, j) @ at(k, m, n))
    np.testing.assert_allclose(product(0, 1, 2, 5), product(2, 2, 4, 6), rtol=1e-5)
    assert abs(product(0, 1, 2, 5) - product(1, 1, 2, 5)) > 1e-3
    assert abs(product(0, 1, 2, 5) - product(0, 2, 2, 5)) > 1e-3
    without_place = embeddings.grid_rotations(1, 2, 8, 3)[:, :3]
    np.testing.assert_array_equal(without_place, np.repeat([[[1.0]], [[0.0]]], 4, 2).repeat(3, 1))


@pytest.mark.parametrize("name", ["adapted", "told"])
def test_text_changes_the_output_and_what_is_not_there_does_not(name):
    model, (x, t) = VARIANTS[name], inputs()
    params, cond = random_params(model), told(model)
    vectors, keep = cond["text"]
    output = compiled(model)(params, x, t, cond)
    behind, before = vectors.copy(), vectors.copy()
    behind[:, 2], before[0, 1] = 100.0, 0.5
    other = lambda vectors: compiled(model)(params, x, t, cond | {"text": (vectors, keep)})
    np.testing.assert_array_equal(other(behind), output)
    changed = np.abs(other(before) - output).max(axis=(1, 2, 3))
    assert changed[0] > 1e-3 and changed[1] == 0.0
    # no text at all is a number, too
    assert np.all(np.isfinite(compiled(model)(params, x, t, cond | {"text": (vectors, 0 * keep)})))


def test_images_that_are_told_are_further_channels():
    model = PAPER.clone(kinds=(("mask", Kind("image", 1)),))
    shapes = init_shapes(model, *inputs(), {"mask": np.zeros((2, 4, 6, 1), np.float32)})
    assert shapes["patch"]["kernel"].shape == (4 * (3 + 1), 16)


def test_dropout_acts_only_in_training():
    model, (x, t), params = PAPER.clone(dropout=0.5), inputs(), random_params(PAPER)
    train = functools.partial(compiled(model, train=True), params, x, t, told(model))
    one, again, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    exact = compiled(PAPER)(params, x, t, told(model))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(compiled(model)(params, x, t, told(model)), exact)


@every_variant
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters_and_output(model):
    half, (x, t), cond = model.clone(dtype=jnp.bfloat16), inputs(), told(model)
    assert {a.dtype for a in jax.tree.leaves(init_shapes(half, x, t, cond))} == {
        np.dtype("float32")
    }
    params = random_params(model)
    exact, output = (compiled(m)(params, x, t, cond) for m in (model, half))
    assert output.dtype == jnp.float32
    error = np.linalg.norm(output - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.05  # bfloat16 has a relative precision of 2^-8 = 0.004


def program(function, *arguments):
    """The StableHLO of a function for NVIDIA's GPUs, exported on this machine."""
    allowed = [
        jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmhaSoftmax{end}")
        for end in ("", "Backward")
    ]
    export = jax.export.export(jax.jit(function), platforms=["cuda"], disabled_checks=allowed)
    return export(*arguments).mlir_module()


def test_a_jvp_on_a_gpu_takes_the_plain_form_of_attention():
    """Fused attention has no forward mode: its weights, of 2 images, 2 heads and 6 x 6 pairs of
    tokens, are computed there, and nowhere else."""
    model, (x, t) = PAPER.clone(dtype=jnp.bfloat16), inputs()
    params, weights = random_params(PAPER), re.compile(r"tensor<2x2x6x6xf32>")
    apply = lambda x: model.apply({"params": params}, x, t, told(model))
    assert "__cudnn$fmhaSoftmax" in (fused := program(apply, x)) and not weights.search(fused)
    assert weights.search(program(lambda x: jax.jvp(apply, (x,), (x,)), x))


def test_forward_mode_agrees_with_reverse_mode():
    (x, t), params, rng = inputs(), random_params(MODERN), np.random.default_rng(4)
    moved, pulled = (rng.standard_normal(x.shape).astype(np.float32) for _ in range(2))

    @jax.jit
    def both(x):
        apply = lambda x: MODERN.apply({"params": params}, x, t, told(MODERN))
        _, pull = jax.vjp(apply, x)
        return jnp.vdot(jax.jvp(apply, (x,), (moved,))[1], pulled), jnp.vdot(pull(pulled)[0], moved)

    np.testing.assert_allclose(*both(x), rtol=1e-4)


def test_remat_computes_each_block_again_and_may_change_in_a_workdir():
    assert FREE in inspect.signature(dit).parameters["remat"].annotation.__metadata__
    model, arguments = TOLD.clone(remat=True), (*inputs(), told(TOLD))
    params = init_shapes(model, *arguments)
    assert params == init_shapes(TOLD, *arguments)
    traced = jax.make_jaxpr(lambda params: model.apply({"params": params}, *arguments))(params)
    checkpoints = [e for e in traced.jaxpr.eqns if e.primitive.name in ("checkpoint", "remat2")]
    again = [e for e in checkpoints if "dot_general" in str(e)]  # a norm has no product
    assert len(again) == TOLD.depth


# Table 1 and section 5 of the paper: parameters in millions, billions of multiply-adds
PAPERS = {"S": (33, 6.06), "B": (130, 23.01), "L": (458, 80.71), "XL": (675, 118.64)}


@pytest.mark.parametrize("size", PAPERS)
def test_sizes_have_the_papers_parameters_and_cost(size):
    kinds = Kinds(label=Kind("index", 1001))
    model = dit((32, 32, 4), kinds, size=size, learned_variance=True)
    arguments = (*inputs(1, 32, 32, 4), {"label": np.zeros(1, np.int32)})
    params = init_shapes(model, *arguments)
    millions, cost = PAPERS[size]
    assert round(sum(a.size for a in jax.tree.leaves(params)) / 1e6) == millions
    traced = jax.make_jaxpr(lambda params: model.apply({"params": params}, *arguments))(params)
    np.testing.assert_allclose(flops.count(traced).flops / 2e9, cost, rtol=2e-3)


def test_swiglu_has_as_many_parameters_as_gelu():
    counts = []
    for mlp in ("gelu", "swiglu"):
        shapes = init_shapes(dit((8, 8, 1), Kinds(), mlp=mlp, depth=1), *inputs(1, 8, 8, 1))
        counts.append(sum(a.size for a in jax.tree.leaves(shapes)))
    assert abs(counts[1] / counts[0] - 1) < 0.01


def factory(shape=(8, 8, 3), kinds=None, **changes):
    small = {"width": 16, "depth": 1, "heads": 2}
    return dit(shape, Kinds(kinds or {}), **(small | changes))


def test_factory_makes_the_network_of_its_settings():
    assert factory(kinds={"label": Kind("index", 4)}, depth=2) == PAPER
    assert factory(learned_variance=True).out_channels == 6
    large = dit((8, 8, 3), Kinds(), size="L", depth=3)
    assert (large.width, large.depth, large.heads) == (1024, 3, 16)
    assert factory() == factory() and hash(factory()) == hash(factory())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": -1}, "width must be at least 0, not -1"),
        ({"heads": 3}, "a width of 16 cannot be cut into 3 heads"),
        ({"patch": 0}, "patch must be above 0, not 0"),
        ({"patch": 3}, "images of 8 x 8 cannot be cut into patches of 3"),
        ({"width": 18}, "sincos positions need a width divisible by 4, not 18"),
        (
            {"width": 12, "positions": "rotary"},
            "rotary positions need heads of channels divisible by 4, not 6",
        ),
        ({"bottleneck": -1}, "bottleneck must be at least 0, not -1"),
        ({"time_scale": 0.0}, "time_scale must be above 0, not 0.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dtype": "float64"}, "dtype must be float32 or bfloat16, not 'float64'"),
        ({"context": 6}, "context must be divisible by 4, not 6"),
        ({"shape": (8, 8)}, "shape must be height, width and channels, not (8, 8)"),
        ({"kinds": {"text": Kind("given", 8)}}, "the dit takes conditions of the kinds index"),
    ],
)
def test_factory_refuses_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        factory(**changes)


def test_image_that_cannot_be_cut_is_refused_by_the_network():
    with pytest.raises(ValueError, match="images of 5 x 6 cannot be cut into patches of 2"):
        init_shapes(PAPER, *inputs(2, 5), told(PAPER))
