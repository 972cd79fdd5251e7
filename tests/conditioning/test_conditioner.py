"""What a network is told, in training and of nothing, by each example's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import augmentation, given, image, joined, label, numbers
from diffusion_jax.core.noise import example_keys, normal
from diffusion_jax.core.types import Kind
from diffusion_jax.data.spec import Declared, Spec

DIGITS = Declared((8, 8, 1), 10)
SPEC = Spec((("image", ((8, 8, 1), "uint8")), ("text", ((3, 2), "float32"))))
SIZE, SHARE = 4000, 0.3
KEYS = example_keys(jax.random.key(0), np.arange(SIZE))
LABELS = np.arange(SIZE, dtype=np.int32) % 10
BATCH = {"label": LABELS, "text": np.ones((SIZE, 3, 2), np.float32)}


def told(conditioner, keys=KEYS, batch=BATCH):
    return jax.tree.map(np.asarray, dict(conditioner.train(keys, batch)[1]))


# Labels


def test_labels_are_dropped_in_their_share_by_each_examples_key():
    conditioner = label(DIGITS, SHARE)
    met = told(conditioner)["label"]
    dropped = met == 10
    np.testing.assert_array_equal(met[~dropped], LABELS[~dropped])
    assert abs(dropped.mean() - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / SIZE)
    # wherever in a batch an example lies
    moved = told(conditioner, KEYS[::-1])["label"][::-1]
    np.testing.assert_array_equal(moved == 10, dropped)
    other = told(conditioner, example_keys(jax.random.key(1), np.arange(SIZE)))["label"]
    assert ((other == 10) != dropped).any()
    noise = np.asarray(normal(jax.vmap(jax.random.fold_in, (0, None))(KEYS, 0), ()))
    assert abs(np.corrcoef(dropped, noise)[0, 1]) < 4 / np.sqrt(SIZE)


def test_labels_are_untouched_without_dropout_or_without_keys():
    assert label(DIGITS).train(KEYS, BATCH)[1]["label"] is LABELS
    assert label(DIGITS, SHARE).train(None, BATCH)[1]["label"] is LABELS


def test_the_last_row_is_none_where_some_labels_are_dropped():
    assert label(DIGITS).kinds == {"label": Kind("index", 10)}
    assert label(DIGITS).null is None
    conditioner = label(DIGITS, 0.1)
    assert conditioner.kinds == {"label": Kind("index", 11)}
    nothing = conditioner.null({"label": jnp.arange(4)})["label"]
    np.testing.assert_array_equal(nothing, np.full(4, 10))
    assert nothing.dtype == jnp.arange(4).dtype


def test_nothing_is_told_of_data_without_classes():
    conditioner = label(Declared((8, 8, 1)))
    assert (conditioner.kinds, conditioner.reads, conditioner.null) == ({}, (), None)
    assert told(conditioner) == {} == conditioner.example(3)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_share_is_at_least_0_and_below_1(dropout):
    for factory in (lambda: label(DIGITS, dropout), lambda: given(SPEC, "text", dropout)):
        with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
            factory()
    with pytest.raises(ValueError, match="dropout needs labels"):
        label(Declared((8, 8, 1)), 0.1)


# Entries as they are


def test_an_entry_is_told_with_a_mask_of_whose_is_known():
    values, keep = told(given(SPEC, "text"))["text"]
    np.testing.assert_array_equal(values, BATCH["text"])
    np.testing.assert_array_equal(keep, np.ones(SIZE))
    assert given(SPEC, "text").reads == ("text",)
    assert given(SPEC, "text").null is None


def test_an_entry_is_dropped_in_its_share_by_each_examples_key():
    conditioner = given(SPEC, "text", SHARE)
    values, keep = told(conditioner)["text"]
    assert set(np.unique(keep)) == {0.0, 1.0}
    assert abs((keep == 0).mean() - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / SIZE)
    np.testing.assert_array_equal(values, BATCH["text"] * keep[:, None, None])
    np.testing.assert_array_equal(told(conditioner, KEYS[::-1])["text"][1][::-1], keep)
    np.testing.assert_array_equal(told(conditioner, None)["text"][1], np.ones(SIZE))
    # not with the label
    dropped = told(label(DIGITS, SHARE))["label"] == 10
    assert abs(np.corrcoef(dropped, keep)[0, 1]) < 4 / np.sqrt(SIZE)


def test_of_nothing_values_and_mask_are_zeros_of_the_same_tree():
    conditioner = given(SPEC, "text", SHARE)
    cond = conditioner.train(None, BATCH)[1]
    nothing = conditioner.null(cond)
    assert jax.tree.structure(nothing) == jax.tree.structure(dict(cond))
    for value, other in zip(jax.tree.leaves(nothing), jax.tree.leaves(cond), strict=True):
        assert value.dtype == other.dtype
        np.testing.assert_array_equal(value, np.zeros(other.shape))


def test_an_entry_that_the_data_lack_is_named():
    with pytest.raises(ValueError, match="no entry 'caption'; they have image, text"):
        given(SPEC, "caption")


# Numbers and images


@pytest.mark.parametrize(
    "factory, kind",
    [(numbers, Kind("vector", 7)), (image, Kind("image", 4))],
)
def test_numbers_and_images_are_told_with_whether_they_are_known(factory, kind):
    shape = (3, 2) if factory is numbers else (2, 2, 3)
    conditioner = factory(Spec((("it", (shape, "float32")),)), "it", dropout=SHARE)
    assert conditioner.kinds == {"it": kind}
    batch = {"it": np.random.default_rng(0).uniform(1, 254, (SIZE, *shape)).astype("f")}
    values = told(conditioner, KEYS, batch)["it"]
    keep = values[..., -1].reshape(SIZE, -1)[:, :1]
    assert set(np.unique(keep)) == {0.0, 1.0}
    assert abs((keep == 0).mean() - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / SIZE)
    known = batch["it"] if factory is numbers else batch["it"] / 127.5 - 1
    flat = values[..., :-1].reshape(SIZE, -1)
    np.testing.assert_allclose(flat, keep * known.reshape(SIZE, -1), atol=1e-5)
    all_told = conditioner.train(None, batch)[1]
    np.testing.assert_array_equal(all_told["it"][..., -1], 1)
    # nothing, in guidance, is what training's nothing was
    nothing = np.asarray(conditioner.null(all_told)["it"])
    dropped = keep[:, 0] == 0
    np.testing.assert_array_equal(nothing[dropped], values[dropped])
    assert jax.tree.map(jnp.shape, conditioner.example(2)) == {"it": (2, *values.shape[1:])}


def test_an_image_that_is_told_has_height_width_and_channels():
    with pytest.raises(ValueError, match="must be images"):
        image(SPEC, "text")
    with pytest.raises(ValueError, match="low must be below high"):
        image(SPEC, "image", 3.0, 3.0)


# Several


def test_several_are_told_as_one():
    one = joined([label(DIGITS, 0.1), given(SPEC, "text"), augmentation(0.5)])
    assert one.kinds == {
        "label": Kind("index", 11),
        "text": Kind("given", 2),
        "augmentation": Kind("vector", 9),
    }
    assert one.reads == ("label", "text")
    example = one.example(3)
    assert jax.tree.map(jnp.shape, example) == {
        "label": (3,),
        "text": ((3, 3, 2), (3,)),
        "augmentation": (3, 9),
    }
    small = {name: value[:6] for name, value in BATCH.items()}
    small["image"] = np.full((6, 8, 8, 1), 9, np.uint8)
    batch, cond = jax.jit(one.train)(KEYS[:6], small)
    assert set(cond) == {"label", "text", "augmentation"}
    assert batch["image"].dtype == jnp.float32  # transformed
    assert jax.tree.map(jnp.shape, one.example(6)) == jax.tree.map(jnp.shape, dict(cond))


def test_of_several_only_those_that_were_dropped_are_untold():
    cond = {"label": jnp.arange(4), "text": (jnp.ones((4, 3, 2)), jnp.ones(4))}
    one = joined([label(DIGITS, 0.1), given(SPEC, "text")])
    nothing = one.null(cond)
    np.testing.assert_array_equal(nothing["label"], np.full(4, 10))
    assert nothing["text"] is cond["text"]
    other = joined([label(DIGITS), given(SPEC, "text", 0.1)]).null(cond)
    assert other["label"] is cond["label"]
    assert not np.any(other["text"][0]) and not np.any(other["text"][1])
    assert joined([label(DIGITS), given(SPEC, "text")]).null is None


def test_none_tells_nothing():
    one = joined([])
    assert (one.kinds, one.reads, one.null) == ({}, (), None)
    assert one.train(KEYS[:1], {"image": 3}) == ({"image": 3}, {})


def test_two_conditions_of_one_name_are_refused():
    spec = Spec((("label", ((), "int32")),))
    with pytest.raises(ValueError, match="two conditions have the name 'label'"):
        joined([label(DIGITS), given(spec, "label")])
