"""What networks are told by name, in all networks that know indices and vectors."""

import re

import jax
import numpy as np
import pytest

from diffusion_jax.core.types import Kind
from diffusion_jax.models.registry import MODELS

KINDS = {"label": Kind("index", 4), "angle": Kind("vector", 3)}
SETTINGS = {
    "unet": {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention_resolutions": ()},
    "dit": {"width": 8, "depth": 1, "heads": 2},
    "mlp": {"width": 8, "depth": 1},
}
X = np.random.default_rng(0).standard_normal((2, 4, 4, 1), np.float32)
T = np.array([3.0, 700.0], np.float32)
LABEL, ANGLE = np.array([1, 3]), np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]], np.float32)


def network(name, kinds=KINDS):
    return MODELS[name](X.shape[1:], kinds, **SETTINGS[name])


def random_params(model, cond):
    shapes = jax.eval_shape(lambda key: model.init(key, X, T, cond)["params"], jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) / 4, shapes)


def apply(model, params, cond, t=T):
    return jax.jit(model.apply)({"params": params}, X, t, cond)


both = pytest.mark.parametrize("name", list(MODELS))


@both
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


@both
def test_a_missing_vector_counts_as_zeros_and_its_layer_is_made_only_where_it_is_told(name):
    model = network(name)
    params = random_params(model, {"label": LABEL, "angle": ANGLE})
    zeros = apply(model, params, {"label": LABEL, "angle": np.zeros_like(ANGLE)})
    for cond in ({"label": LABEL}, {"label": LABEL, "angle": None}):
        np.testing.assert_array_equal(apply(model, params, cond), zeros)
    assert "angle" not in random_params(model, {"label": LABEL})


@both
def test_nothing_told_is_an_empty_mapping_or_none(name):
    model = network(name, {})
    params = random_params(model, None)
    np.testing.assert_array_equal(apply(model, params, {}), apply(model, params, None))


def refusal(function, *arguments):
    with pytest.raises(ValueError, match="cond |t must") as error:
        function(*arguments)
    return str(error.value)


@both
def test_an_unknown_name_is_an_error_which_says_the_known_ones(name):
    model, cond = network(name), {"label": LABEL, "lable": LABEL}
    params = random_params(model, {"label": LABEL})
    wanted = "cond has 'lable', which this network does not know; known: 'label', 'angle'"
    assert refusal(random_params, model, cond) == wanted
    assert refusal(apply, model, params, cond) == wanted
    assert refusal(random_params, network(name, {}), cond).endswith("does not know; known: none")


@both
def test_a_missing_index_is_an_error_at_init_and_after(name):
    model = network(name)
    params = random_params(model, {"label": LABEL})
    wanted = "cond lacks 'label', an index [B] that this network needs"
    for cond in (None, {}, {"angle": ANGLE}):
        assert refusal(random_params, model, cond) == wanted
        assert refusal(apply, model, params, cond) == wanted


@both
def test_t_is_one_number_an_example(name):
    model = network(name, {})
    params = random_params(model, None)
    for t in (np.float32(3.0), np.ones((2, 5), np.float32)):
        wanted = f"t must be one number an example, [B], not of shape {t.shape}"
        assert refusal(apply, model, params, None, t) == wanted


@both
@pytest.mark.parametrize("how", ["sequence", "image"])
def test_conditions_of_another_kind_are_refused(name, how):
    message = f"the {name} takes conditions that are an index or a vector; 'text' is of the kind"
    with pytest.raises(ValueError, match=re.escape(f"{message} {how!r}")):
        network(name, {"text": Kind(how, 8)})
