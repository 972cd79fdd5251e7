"""Words by their characters: what a table's rows are, and what is told of a text."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.conditioning import joined, words
from diffusion_jax.conditioning.words import GRAMS, grams, rows_of, split
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import Kind
from diffusion_jax.data import texts
from diffusion_jax.data.arrays import Arrays


def source(*captions):
    return Arrays(None, others={"text": texts.encode(captions)})


def test_words_are_letters_and_digits_in_lower_case():
    assert split("A red HEART, on 2 \uff22oxes; caf\u00e9!") == [
        "a", "red", "heart", "on", "2", "boxes", "caf\u00e9",
    ]  # fmt: skip


def test_a_word_is_itself_and_its_n_grams():
    rows = 8192
    row = lambda text: 1 + zlib.crc32(text.encode()) % (rows - 1)
    expected = ["<red>", "<re", "red", "ed>", "<red", "red>"]
    assert grams("red", rows) == [row(text) for text in expected]
    assert len(grams("a" * 50, rows)) == GRAMS
    assert min(grams("red heart", 2)) == max(grams("red heart", 2)) == 1


def test_like_words_share_rows():
    one, other = (set(grams(word, 2**20)) for word in ("sunflower", "sunflowers"))
    assert len(one & other) > len(one) / 2
    assert not set(grams("sunflower", 2**20)) & set(grams("camel", 2**20))


def test_what_is_told_of_a_text():
    conditioner = words(length=3, rows=100)
    assert conditioner.kinds == {"text": Kind("bags", 100)}
    prepared = conditioner.prepare(source("a red heart on blue", "", "camel"))
    assert prepared[1]["words"].shape == (3, GRAMS)
    batch = {"words": np.stack([prepared[i]["words"] for i in range(3)])}
    rows, keep = conditioner.train(None, batch)[1]["text"]
    np.testing.assert_array_equal(keep, [[1, 1, 1], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(rows[0], rows_of("a red heart", 3, 100))
    example = conditioner.example(2)["text"]
    assert [a.shape for a in example] == [(2, 3, GRAMS), (2, 3)]
    assert "1 of 3 texts have more than 3 words, of which the first are taken" in prepared.notes


def test_a_dropped_text_is_what_guidance_says_of_none():
    conditioner = joined([words(dropout=0.5)])
    prepared = conditioner.prepare(source("a red heart"))
    batch = {"words": np.repeat(prepared[0]["words"][None], 40, axis=0)}
    keys = example_keys(jax.random.key(0), np.arange(40))
    rows, keep = conditioner.train(keys, batch)[1]["text"]
    dropped = np.asarray(keep).sum(axis=1) == 0
    assert 5 < dropped.sum() < 35
    nothing = conditioner.null(conditioner.train(None, batch)[1])["text"]
    for told, null in zip((rows, keep), nothing, strict=True):
        np.testing.assert_array_equal(np.asarray(told)[dropped], np.asarray(null)[dropped])
    assert jnp.all(nothing[1] == 0)


def test_data_without_texts_are_named():
    with pytest.raises(ValueError, match="no entry 'text'; they have image, label"):
        words().prepare(Arrays(np.zeros((2, 8, 8, 1), np.uint8)))
    numbers = Arrays(None, others={"text": np.zeros((2, 7), np.float32)})
    with pytest.raises(ValueError, match=r"'text' is float32 \(7,\), not a text"):
        words().prepare(numbers)
    with pytest.raises(ValueError, match="rows must be above 1"):
        words(rows=1)


def test_texts_are_bytes_and_come_back():
    written = ["a red heart", "", "caf\u00e9 \u2764", "\u00e9" * 200]
    rows = texts.encode(written, 9)
    assert rows.shape == (4, 9) and rows.dtype == np.uint8
    back = [texts.decode(row) for row in rows]
    assert back == [
        "a red hea",
        "",
        "caf\u00e9 \u2764",
        "\u00e9" * 4,
    ]
