"""What networks are told by name, in all networks that know indices and vectors."""

import re

import jax
import numpy as np
import pytest

from diffusion_jax.core.types import Kind, Kinds
from diffusion_jax.models.layers import ContextBlock
from diffusion_jax.models.registry import MODELS

KINDS = {"label": Kind("index", 4), "angle": Kind("vector", 3)}
SETTINGS = {
    "unet": {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()},
    "dit": {"width": 8, "depth": 1, "heads": 2},
    "edm2": {
        "channels": 8,
        "channel_mult": (1,),
        "blocks": 1,
        "attention_resolutions": (),
        "head_channels": 8,
    },
    "mlp": {"width": 8, "depth": 1},
}
X = np.random.default_rng(0).standard_normal((2, 4, 4, 1), np.float32)
T = np.array([3.0, 700.0], np.float32)
LABEL, ANGLE = np.array([1, 3]), np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]], np.float32)


def test_all_networks_are_here_but_those_told_nothing():
    assert MODELS.keys() - SETTINGS.keys() == {"autoencoder", "tiny_autoencoder"}


def network(name, kinds=KINDS):
    return MODELS[name](X.shape[1:], kinds, **SETTINGS[name])


def random_params(model, cond):
    shapes = jax.eval_shape(lambda key: model.init(key, X, T, cond)["params"], jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) / 4, shapes)


def apply(model, params, cond, t=T):
    return jax.jit(model.apply)({"params": params}, X, t, cond)


every = pytest.mark.parametrize("name", list(SETTINGS))
# EDM2's preserves magnitudes: what is told is no summand that may be left out
adding = pytest.mark.parametrize("name", [name for name in SETTINGS if name != "edm2"])


@adding
def test_conditions_have_the_layers_of_their_names_and_are_added_to_the_embedding(name):
    model, cond = network(name), {"label": LABEL, "angle": ANGLE}
    params = random_params(model, cond)
    width = params["time2"]["bias"].shape[0]
    assert params["label"]["embedding"].shape == (4, width)
    assert {key: a.shape for key, a in params["angle"].items()} == {"kernel": (3, width)}

    # what is added for one example may as well stand in the bias of the layer before
    told = apply(model, params, cond)
    for i in range(2):
        row = params["label"]["embedding"][LABEL[i]] + ANGLE[i] @ params["angle"]["kernel"]
        zero = {"label": {"embedding": np.zeros((4, width), np.float32)}}
        bias = {"bias": params["time2"]["bias"] + row}
        moved = params | zero | {"time2": params["time2"] | bias}
        np.testing.assert_allclose(
            apply(model, moved, {"label": LABEL})[i], told[i], rtol=1e-4, atol=1e-4
        )


@adding
def test_a_missing_vector_counts_as_zeros_and_its_layer_is_made_only_where_it_is_told(name):
    model = network(name)
    params = random_params(model, {"label": LABEL, "angle": ANGLE})
    zeros = apply(model, params, {"label": LABEL, "angle": np.zeros_like(ANGLE)})
    for cond in ({"label": LABEL}, {"label": LABEL, "angle": None}):
        np.testing.assert_array_equal(apply(model, params, cond), zeros)
    assert "angle" not in random_params(model, {"label": LABEL})


@every
def test_nothing_told_is_an_empty_mapping_or_none(name):
    model = network(name, {})
    params = random_params(model, None)
    np.testing.assert_array_equal(apply(model, params, {}), apply(model, params, None))


def refusal(function, *arguments):
    with pytest.raises(ValueError, match="cond |t must") as error:
        function(*arguments)
    return str(error.value)


@every
def test_an_unknown_name_is_an_error_which_says_the_known_ones(name):
    model, cond = network(name), {"label": LABEL, "lable": LABEL}
    params = random_params(model, {"label": LABEL})
    wanted = "cond has 'lable', which this network does not know; known: 'label', 'angle'"
    assert refusal(random_params, model, cond) == wanted
    assert refusal(apply, model, params, cond) == wanted
    assert refusal(random_params, network(name, {}), cond).endswith("does not know; known: none")


@every
def test_a_missing_index_is_an_error_at_init_and_after(name):
    model = network(name)
    params = random_params(model, {"label": LABEL})
    wanted = "cond lacks 'label', an index [B] that this network needs"
    for cond in (None, {}, {"angle": ANGLE}):
        assert refusal(random_params, model, cond) == wanted
        assert refusal(apply, model, params, cond) == wanted


@every
def test_t_is_one_number_an_example(name):
    model = network(name, {})
    params = random_params(model, None)
    for t in (np.float32(3.0), np.ones((2, 5), np.float32)):
        wanted = f"t must be one number an example, [B], not of shape {t.shape}"
        assert refusal(apply, model, params, None, t) == wanted


@pytest.mark.parametrize("name, how", [("mlp", "sequence"), ("mlp", "image"), ("unet", "given")])
def test_conditions_of_another_kind_are_refused(name, how):
    message = f"the {name} takes conditions of the kinds index.*; 'text' is of the kind '{how}'"
    with pytest.raises(ValueError, match=message):
        network(name, {"text": Kind(how, 3)})


# Sequences and images, in networks that attend to a context

SEQUENCES = {"text": Kind("sequence", 5), "words": Kind("bags", 50), "low": Kind("image", 2)}
RNG = np.random.default_rng(3)
TOLD = {
    "text": (RNG.standard_normal((2, 3, 5), np.float32), np.array([[1, 1, 0], [1, 0, 0]], "f")),
    "words": (RNG.integers(1, 50, (2, 4, 6)), np.array([[1, 1, 1, 0], [1, 1, 0, 0]], "f")),
    "low": RNG.standard_normal((2, 4, 4, 2), np.float32),
}


@pytest.fixture(scope="module")
def attending():
    model = MODELS["unet"](X.shape[1:], Kinds(SEQUENCES), **SETTINGS["unet"], context=16)
    return model, random_params(model, TOLD)


def test_what_is_under_the_mask_changes_nothing_and_what_is_not_does(attending):
    model, params = attending
    plain = np.asarray(apply(model, params, TOLD))
    for name, dirt in (("text", 1e3), ("words", 7)):
        values, keep = TOLD[name]
        other = np.where(keep.reshape(*keep.shape, 1) > 0, values, dirt).astype(values.dtype)
        assert (other != values).any()
        np.testing.assert_array_equal(apply(model, params, TOLD | {name: (other, keep)}), plain)
        swapped = values.copy()
        swapped[:, [0, 1]] = swapped[:, [1, 0]]
        assert abs(apply(model, params, TOLD | {name: (swapped, keep)}) - plain).max() > 1e-3
        nothing = apply(model, params, TOLD | {name: (values, 0 * keep)})
        assert np.isfinite(nothing).all() and abs(nothing - plain).max() > 1e-3


def test_rows_of_a_bag_are_a_set(attending):
    model, params = attending
    rows, keep = TOLD["words"]
    turned = TOLD | {"words": (rows[:, :, ::-1], keep)}
    np.testing.assert_allclose(
        apply(model, params, turned), apply(model, params, TOLD), rtol=1e-4, atol=1e-5
    )
    # row 0 is none: a bag with it is that without
    padded = np.concatenate([rows, np.zeros((2, 4, 3), int)], axis=2)
    np.testing.assert_allclose(
        apply(model, params, TOLD | {"words": (padded, keep)}),
        apply(model, params, TOLD),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_image_lies_beside_x(attending):
    model, params = attending
    assert params["conv_in"]["kernel"].shape[2] == 3
    moved = TOLD | {"low": TOLD["low"] + 1}
    assert abs(apply(model, params, moved) - apply(model, params, TOLD)).max() > 1e-3
    small = TOLD | {"low": TOLD["low"][:, :2]}
    with pytest.raises(ValueError, match=re.escape("must be as large as x, (4, 4), not (2, 4)")):
        apply(model, params, small)


def test_sequences_and_images_must_be_told(attending):
    model, params = attending
    for name in TOLD:
        rest = {key: value for key, value in TOLD.items() if key != name}
        with pytest.raises(ValueError, match=f"cond lacks '{name}'"):
            apply(model, params, rest)
    with pytest.raises(ValueError, match="cond has 'sound', which this network does not know"):
        apply(model, params, TOLD | {"sound": X})


def test_a_context_changes_nothing_at_first():
    """And so a trained network is as it was when a text is added."""
    x = RNG.standard_normal((2, 4, 4, 8), np.float32)
    tokens, keep = RNG.standard_normal((2, 3, 16), np.float32), np.ones((2, 3), np.float32)
    block = ContextBlock(heads=2)
    params = block.init(jax.random.key(0), x, tokens, keep)
    np.testing.assert_array_equal(block.apply(params, x, tokens, keep), x)
