"""The weights of others: their numbers from their weights, and back."""

import functools
import math

import jax
import numpy as np
import pytest
from tensors import assert_same, refusal

from diffusion_jax.core.types import Kind
from diffusion_jax.interop import state_dicts
from diffusion_jax.models.unet import UNet, unet

NAMES = ("plain", "learned_sigma", "class_cond", "adm")
ORDERS = [*((name, False) for name in NAMES), ("adm", True)]


@pytest.fixture(scope="session")
def state_dict(reference):
    """name of a recorded U-Net -> its state dict, by the formula in tests/reference/README.md."""

    @functools.cache
    def make(name):
        recorded, tensors = reference("unet.json")[name], {}

        def add(tensor, shape):
            n = math.prod(shape)
            values = np.sin(0.37 * np.arange(n) + 1.3 * len(tensors) + recorded["seed"]) * 0.6
            tensors[tensor] = (
                (values / np.sqrt(max(1, n // shape[0]))).astype(np.float32).reshape(shape)
            )

        for layer, shape in recorded["layers"].items():
            add(f"{layer}.weight", shape)
            if layer != "label_emb":
                add(f"{layer}.bias", shape[:1])
        return tensors

    return lambda name: dict(make(name))


@pytest.fixture(scope="session")
def inferred(reference, state_dict):
    """name of a recorded U-Net -> (the network read from its state dict, its settings, channels and
    classes, shapes of the parameters)."""

    @functools.cache
    def read(name):
        options = reference("unet.json")[name]["config"]
        heads = {"heads": options.get("num_heads", 1)}
        heads |= {"head_channels": options.get("num_head_channels", 0)}
        height, width = reference("unet.npz")[f"{name}/x"].shape[1:3]
        found = state_dicts.infer_model(state_dict(name), height)
        settings, channels, classes = found
        kinds = {"label": Kind("index", classes)} if classes else {}
        model = unet((height, width, channels), kinds, **heads, **settings)
        x, t = np.zeros((1, height, width, channels), np.float32), np.zeros(1, np.float32)
        cond = {"label": np.zeros(1, np.int32)} if classes else None
        init = lambda key: model.init(key, x, t, cond)["params"]
        return model, found, jax.eval_shape(init, jax.random.key(0))

    return read


@pytest.mark.parametrize(("name", "new_order"), ORDERS)
def test_network_gives_the_peers_output(reference, state_dict, inferred, name, new_order):
    model, _, like = inferred(name)
    params = state_dicts.from_torch_names(state_dict(name), like, model, new_order)
    recorded = reference("unet.npz")
    output = {"adm": "adm/output_new" if new_order else "adm/output_legacy"}.get(
        name, f"{name}/output"
    )
    cond = {"label": recorded[f"{name}/y"]} if f"{name}/y" in recorded else None
    actual = compiled(model)({"params": params}, recorded[f"{name}/x"], recorded[f"{name}/t"], cond)
    np.testing.assert_allclose(actual, recorded[output], atol=2e-4)


@functools.cache
def compiled(model):
    return jax.jit(model.apply)


@pytest.mark.parametrize("name", NAMES)
def test_infer_model_finds_the_recorded_config(reference, inferred, name):
    recorded, (settings, channels, classes) = (
        reference("unet.json")[name]["config"],
        inferred(name)[1],
    )
    height = reference("unet.npz")[f"{name}/x"].shape[1]
    assert channels == recorded["in_channels"]
    assert classes == recorded.get("num_classes", 0)
    assert settings == {
        "learned_variance": recorded["out_channels"] == 2 * recorded["in_channels"],
        "channels": recorded["model_channels"],
        "channel_mult": tuple(recorded["channel_mult"]),
        "blocks": recorded["num_res_blocks"],
        "attention_resolutions": tuple(
            height // factor for factor in recorded["attention_resolutions"]
        ),
        "scale_shift": recorded.get("use_scale_shift_norm", False),
        "resample_blocks": recorded.get("resblock_updown", False),
    }


@pytest.mark.parametrize(("name", "new_order"), ORDERS)
def test_round_trip_is_exact(state_dict, inferred, name, new_order):
    model, _, like = inferred(name)
    params = state_dicts.from_torch_names(state_dict(name), like, model, new_order)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    assert_same(state_dicts.to_torch_names(params, model, new_order), state_dict(name))


@pytest.mark.parametrize("ones", [0, 2])
def test_attention_may_be_of_linear_layers_or_conv2d(state_dict, inferred, ones):
    model, _, like = inferred("plain")
    tensors = state_dict("plain")
    for name, tensor in tensors.items():
        if name.endswith(("qkv.weight", "proj_out.weight")):
            tensors[name] = tensor.reshape(tensor.shape[:2] + (1,) * ones)
    params = state_dicts.from_torch_names(tensors, like, model)
    assert_same(state_dicts.to_torch_names(params, model), state_dict("plain"))


def test_missing_unexpected_and_misshaped_tensors_are_named(state_dict, inferred):
    model, _, like = inferred("plain")
    convert = functools.partial(state_dicts.from_torch_names, like=like, model=model)

    tensors = state_dict("plain")
    del tensors["input_blocks.3.1.qkv.bias"]
    assert refusal(convert, tensors) == "the weights do not fit: missing: input_blocks.3.1.qkv.bias"

    tensors = state_dict("plain") | {"label_emb.weight": np.zeros((10, 128), np.float32)}
    assert refusal(convert, tensors) == "the weights do not fit: unexpected: label_emb.weight"

    tensors = state_dict("plain") | {"out.2.weight": np.zeros((3, 32, 1, 1), np.float32)}
    message = (
        "the weights do not fit: of another shape: out.2.weight [3, 32, 1, 1] for [3, 32, 3, 3]"
    )
    assert refusal(convert, tensors) == message

    # a transposed square matrix cannot be told; one of other sizes, or a vector for a matrix, can
    tensors = state_dict("plain") | {"time_embed.0.weight": np.zeros((32, 128), np.float32)}
    assert "time_embed.0.weight [32, 128] for [128, 32]" in refusal(convert, tensors)
    tensors = state_dict("plain") | {"time_embed.0.weight": np.zeros(128 * 32, np.float32)}
    assert "time_embed.0.weight [4096] for [128, 32]" in refusal(convert, tensors)

    tensors = {
        name: a for name, a in state_dict("plain").items() if not name.startswith("middle_block.1")
    }
    tensors |= {f"extra.{i}": np.zeros(1, np.float32) for i in range(4)}
    message = refusal(convert, tensors)
    missing = ", ".join(
        f"middle_block.1.{name}" for name in ("norm.weight", "norm.bias", "qkv.weight")
    )
    assert f"missing: {missing} and 3 more" in message
    assert "unexpected: extra.0, extra.1, extra.2 and 1 more" in message


def test_weights_of_other_networks_are_refused(state_dict):
    plain = state_dict("plain")
    infer = functools.partial(state_dicts.infer_model, height=16)
    assert refusal(infer, {"conv1.weight": np.zeros((8, 3, 3, 3))}).endswith(
        "no time_embed.0.weight"
    )
    assert refusal(infer, plain | {"time_embed.0.weight": np.zeros(4)}).endswith(
        "no time_embed.0.weight"
    )
    pooled = {name: a for name, a in plain.items() if ".op." not in name and ".2.conv." not in name}
    assert "3 input and 4 output blocks on 1 levels" in refusal(infer, pooled)
    # ADM's 512 x 512 network has levels of half the embedding's channels
    assert "begun with 16" in refusal(
        infer, plain | {"input_blocks.0.0.weight": np.zeros((16, 3, 3, 3))}
    )
    assert "5 output channels for 3" in refusal(
        infer, plain | {"out.2.weight": np.zeros((5, 32, 3, 3))}
    )
    assert refusal(infer, plain, height=9).startswith("images of height 9 cannot be halved 1 times")


def test_layers_that_the_state_dicts_lack_are_named():
    model = UNet(
        1, 8, (1,), 1, (), kinds=(("augmentation", Kind("vector", 9)), ("angle", Kind("vector", 1)))
    )
    x, t = np.zeros((1, 8, 8, 1), np.float32), np.zeros(1, np.float32)
    for name, more in (
        ("augmentation", ": the run's conditioning names augmentation"),
        ("angle", ""),
    ):
        init = lambda key, name=name: model.init(key, x, t, {name: np.zeros((1, 9))})["params"]
        params = jax.eval_shape(init, jax.random.key(0))
        assert refusal(state_dicts.torch_names, params, model) == (
            f"this U-Net has a layer {name!r}, which Improved DDPM's and ADM's weights lack{more}"
        )
