"""DiT's weights under the published names and under diffusers', and its numbers by diffusers."""

import math

import jax
import numpy as np
import pytest
from tensors import assert_same, refusal

from diffusion_jax.core.types import Kind
from diffusion_jax.interop import dit_names
from diffusion_jax.models.dit import DiT

WIDTH, DEPTH, CHANNELS, ROWS = 16, 2, 3, 4
MODEL = DiT(
    2 * CHANNELS, width=WIDTH, depth=DEPTH, heads=2, kinds=(("label", Kind("index", ROWS)),)
)
HEIGHT, LONG = 4, 6  # the grid is of 2 x 3 patches of 2 x 2 pixels


def shapes(model=MODEL):
    x, t = np.zeros((1, HEIGHT, LONG, CHANNELS), np.float32), np.zeros(1, np.float32)
    cond = {name: np.zeros(1, np.int32) for name, _ in model.kinds}
    init = lambda key: model.init(key, x, t, cond)["params"]
    return jax.eval_shape(init, jax.random.key(0))


def published():
    """A state dict as the published file has it, of numbers by the formula in
    tests/reference/README.md."""
    layers = {"x_embedder.proj": (WIDTH, CHANNELS, 2, 2)}
    layers |= {"t_embedder.mlp.0": (WIDTH, 256), "t_embedder.mlp.2": (WIDTH, WIDTH)}
    layers |= {"y_embedder.embedding_table": (ROWS, WIDTH)}
    for i in range(DEPTH):
        layers |= {
            f"blocks.{i}.attn.qkv": (3 * WIDTH, WIDTH),
            f"blocks.{i}.attn.proj": (WIDTH,) * 2,
        }
        layers |= {f"blocks.{i}.mlp.fc1": (4 * WIDTH, WIDTH), f"blocks.{i}.mlp.fc2": (WIDTH, 64)}
        layers |= {f"blocks.{i}.adaLN_modulation.1": (6 * WIDTH, WIDTH)}
    layers |= {"final_layer.linear": (4 * 2 * CHANNELS, WIDTH)}
    layers |= {"final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH)}
    tensors = {"pos_embed": places()}
    for name, shape in layers.items():
        for end, sizes in {"weight": shape, "bias": shape[:1]}.items():
            if name != "y_embedder.embedding_table" or end == "weight":
                n, j = math.prod(sizes), len(tensors) - 1
                values = np.sin(0.37 * np.arange(n) + 1.3 * j) * 0.6 / np.sqrt(n // sizes[0])
                tensors[f"{name}.{end}"] = values.astype(np.float32).reshape(sizes)
    return tensors


def places():
    """Each patch's sines and cosines of its column, then of its row."""
    waves = lambda n: [f(n * 10000.0 ** (-i / 4)) for f in (np.sin, np.cos) for i in range(4)]
    rows = [waves(column) + waves(row) for row in range(2) for column in range(3)]
    return np.array([rows], np.float32)


def read(tensors, model=MODEL, height=HEIGHT, width=LONG):
    return dit_names.from_names(tensors, shapes(model), model, height, width)


def write(params, layout, model=MODEL):
    return dit_names.to_names(params, model, HEIGHT, LONG, layout)


def test_published_names_are_read_and_written_bit_for_bit():
    params = read(published())
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes())
    assert_same(write(params, "dit"), published())


def test_both_layouts_hold_the_same_numbers(reference):
    theirs, params = published(), read(published())
    other = write(params, "diffusers")
    assert list(other) == list(reference("dit.npz")["names"])
    block, theirs_block = "transformer_blocks.1.", "blocks.1."
    parts = [other[f"{block}attn1.to_{name}.weight"] for name in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), theirs[f"{theirs_block}attn.qkv.weight"])
    parts = [other[f"{block}attn1.to_{name}.bias"] for name in "qkv"]
    np.testing.assert_array_equal(np.concatenate(parts), theirs[f"{theirs_block}attn.qkv.bias"])
    for i in range(DEPTH):  # repeated in every block
        table = other[f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"]
        np.testing.assert_array_equal(table, theirs["y_embedder.embedding_table.weight"])
    jax.tree.map(np.testing.assert_array_equal, read(other), params)
    assert_same(write(read(other), "diffusers"), other)


def test_network_gives_diffusers_output(reference):
    recorded, params = reference("dit.npz"), read(published())
    t, told = recorded["t"].astype(np.float32), {"label": recorded["label"]}
    actual = jax.jit(MODEL.apply)({"params": params}, recorded["x"], t, told)
    np.testing.assert_allclose(actual, recorded["output"], atol=1e-5)


def test_network_is_found_from_the_names_and_shapes():
    plain = dit_names.PLAIN | {"patch": 2, "learned_variance": True}
    for tensors in (published(), write(read(published()), "diffusers")):
        found = dit_names.infer_model(tensors)
        assert found == (plain | {"width": WIDTH, "depth": DEPTH}, CHANNELS, ROWS)
    large = {"x_embedder.proj.weight": np.zeros((1152, 4, 2, 2), np.float32)}
    large["final_layer.linear.weight"] = np.zeros((16, 1152), np.float32)
    large |= {f"blocks.{i}.attn.qkv.bias": np.zeros(0, np.float32) for i in range(28)}
    settings, channels, rows = dit_names.infer_model(large)
    assert (settings["size"], settings["width"], settings["depth"]) == ("XL", 0, 0)
    assert (settings["learned_variance"], channels, rows) == (False, 4, 0)


def test_what_does_not_fit_is_named():
    tensors = published()
    missing = {n: a for n, a in tensors.items() if n != "blocks.1.mlp.fc2.bias"}
    assert refusal(read, missing) == "the weights do not fit: missing: blocks.1.mlp.fc2.bias"
    other = tensors | {"pos_embed": places()[:, ::-1]}
    assert refusal(read, other) == "pos_embed does not hold the sinusoids of 4 x 6 pixels"
    assert "pos_embed [1, 6, 16] for [1, 9, 16]" in refusal(read, tensors, height=6)
    repeated = write(read(tensors), "diffusers")
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    repeated[name] = repeated[name] + 1
    assert refusal(read, repeated) == f"{name} differs from that of the first block"
    assert "no x_embedder.proj.weight" in refusal(dit_names.infer_model, {"conv": np.zeros(3)})
    five = tensors | {"final_layer.linear.weight": np.zeros((20, WIDTH), np.float32)}
    assert "20 outputs a patch for 3 channels" in refusal(dit_names.infer_model, five)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MODEL.clone(norm="rms"), "DiT's weights have norm=layer, not rms"),
        (
            MODEL.clone(kinds=(("text", Kind("sequence", 8)),)),
            "this DiT has a layer 'text', which DiT's weights lack",
        ),
    ],
    ids=["norm", "text"],
)
def test_networks_that_the_names_have_no_place_for_are_refused(model, message):
    like = {"text": {"layer": np.zeros(1)}} if model.kinds[0][0] == "text" else shapes(model)
    assert refusal(dit_names.places, like, model, "dit") == message
