"""Text by an encoder of others: features of a source's texts, told by each example's own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import CONDITIONERS, Encoders, text
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import Kind
from diffusion_jax.data import texts
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.spec import spec_of

LENGTH, WIDTH, SIZE, SHARE = 3, 2, 4000, 0.3
KEYS = example_keys(jax.random.key(0), np.arange(SIZE))


class Letters:
    """Features of a text's first letters: the code of each, and its place from 1."""

    def __init__(self, given):
        self.given = given

    def features(self, i):
        found = np.zeros((LENGTH, WIDTH), np.float16)
        for place, letter in enumerate(self.given[i][:LENGTH]):
            found[place] = ord(letter), place + 1
        return found

    def mask(self, i):
        return (np.arange(LENGTH) < len(self.given[i])).astype(np.float32)

    def notes(self):
        return [f"{sum(len(one) > LENGTH for one in self.given)} are cut"]


@pytest.fixture
def asked():
    return []


@pytest.fixture
def encoders(asked):
    def table(name, length, given):
        asked.append((name, length, list(given)))
        return Letters(given)

    return Encoders(lambda name, length: WIDTH, table)


def batch(size=SIZE):
    features = np.ones((size, LENGTH, WIDTH), np.float16)
    mask = np.tile(np.array([1, 1, 0], np.float32), (size, 1))
    return {"text_features": features * mask[..., None].astype(np.float16), "text_mask": mask}


def test_it_is_one_of_the_conditioners(encoders):
    assert CONDITIONERS["text"] is text
    conditioner = text(encoders, "minilm", LENGTH, SHARE)
    assert conditioner is text(encoders, length=LENGTH, dropout=SHARE)
    assert conditioner.kinds == {"text": Kind("sequence", WIDTH)}
    assert conditioner.reads == ("text_features", "text_mask")


def test_a_prepared_source_yields_features_and_mask_of_each_text(encoders, asked):
    rows = texts.encode(["ab", "naïve", "ab", "", "x"], 32)
    labels = np.arange(5)
    source = Arrays(None, labels, others={"text": rows}, notes=["one"])
    prepared = text(encoders, "some", LENGTH).prepare(source)
    assert asked == [("some", LENGTH, ["ab", "naïve", "", "x"])]  # each once
    assert prepared.notes == ["one", "1 are cut"]
    assert len(prepared) == 5 and prepared.num_classes == 5
    wanted = Letters(["ab", "naïve", "ab", "", "x"])
    for i in range(5):
        example = prepared[i]
        np.testing.assert_array_equal(example["text_features"], wanted.features(i))
        np.testing.assert_array_equal(example["text_mask"], wanted.mask(i))
        np.testing.assert_array_equal(example["text"], rows[i])
        assert example["label"] == i
    assert spec_of(prepared)["text_features"] == ((LENGTH, WIDTH), np.float16)


def test_without_keys_all_is_told_in_float32(encoders):
    given = batch()
    unchanged, cond = text(encoders, "minilm", LENGTH, SHARE).train(None, given)
    features, mask = cond["text"]
    assert unchanged is given and features.dtype == mask.dtype == jnp.float32
    np.testing.assert_array_equal(features, given["text_features"])
    np.testing.assert_array_equal(mask, given["text_mask"])


def test_texts_are_dropped_in_their_share_by_each_examples_key(encoders):
    conditioner = text(encoders, "minilm", LENGTH, SHARE)
    features, mask = jax.jit(conditioner.train)(KEYS, batch())[1]["text"]
    kept = np.asarray(mask[:, 0])
    assert abs((kept == 0).mean() - SHARE) < 4 * np.sqrt(SHARE * (1 - SHARE) / SIZE)
    np.testing.assert_array_equal(mask, batch()["text_mask"] * kept[:, None])
    np.testing.assert_array_equal(features, batch()["text_features"] * kept[:, None, None])
    moved = conditioner.train(KEYS[::-1], batch())[1]["text"][1]
    np.testing.assert_array_equal(moved[::-1], mask)


def test_of_nothing_features_and_mask_are_zeros_of_the_same_tree(encoders):
    conditioner = text(encoders, "minilm", LENGTH, SHARE)
    cond = conditioner.train(None, batch(4))[1]
    nothing = conditioner.null(cond)
    assert jax.tree.map(jnp.shape, nothing) == jax.tree.map(jnp.shape, dict(cond))
    assert not any(np.any(value) for value in jax.tree.leaves(nothing))
    assert jax.tree.map(jnp.shape, conditioner.example(4)) == jax.tree.map(jnp.shape, nothing)
    assert text(encoders, "minilm", LENGTH, 0.0).null is None


def test_bad_settings(encoders):
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        text(encoders, dropout=1.0)
    with pytest.raises(ValueError, match="length must be above 0, not 0"):
        text(encoders, length=0)
    with pytest.raises(ValueError, match="no entry 'text'; they have image"):
        text(encoders).prepare([{"image": np.zeros((8, 8, 1), np.uint8)}])
