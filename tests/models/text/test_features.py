"""Features of texts: each computed once, kept on the disk, and found again."""

import encoders
import jax
import numpy as np
import pytest
from tensors import refusal

from diffusion_jax.models import text
from diffusion_jax.models.text import features as module
from diffusion_jax.models.text import load

pytest.importorskip("tokenizers", reason="needs the package tokenizers")
pytestmark = pytest.mark.filterwarnings("ignore:.* are longer than .* tokens")
TEXTS = ["a red cat", "the dog", "a red cat", "the small dog on the large cup", "under the cup"]
LENGTH, WIDTH = 6, 16


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffusion_jax" / "text"


@pytest.fixture
def folder(tmp_path, reference):
    return encoders.write(tmp_path / "encoder", reference("text.json")["bert"])


@pytest.fixture
def encoder(folder):
    return load(str(folder), LENGTH)


@pytest.fixture
def tokenized(monkeypatch):
    """The texts that were tokenized, which is what is computed."""
    seen, own = [], text.TextEncoder.tokenize
    monkeypatch.setattr(
        text.TextEncoder, "tokenize", lambda self, texts: seen.extend(texts) or own(self, texts)
    )
    return seen


def blocks(cache):
    return sorted(path.parent.name for path in cache.glob("*/*/features.npy"))


def test_features_are_the_networks_in_half_precision(encoder):
    with pytest.warns(UserWarning, match="1 of 5 texts are longer than 6 tokens"):
        features, mask = text.embed(encoder, TEXTS, batch_size=2)
    assert (features.shape, features.dtype) == ((5, LENGTH, WIDTH), np.float16)
    ids, wanted_mask, _ = encoder.tokenize(TEXTS)
    np.testing.assert_array_equal(mask, wanted_mask)
    assert mask.dtype == np.float32
    wanted = np.asarray(jax.jit(encoder.apply)(encoder.params, ids, mask)) * mask[..., None]
    np.testing.assert_allclose(features, wanted, rtol=2**-11, atol=1e-5)
    assert not features[mask == 0].any()


def test_each_text_is_computed_once(encoder, folder, cache, tokenized):
    first = text.embed(encoder, TEXTS, batch_size=2)
    assert sorted(tokenized) == sorted(set(TEXTS))
    tokenized.clear()
    again = text.embed(load(str(folder), LENGTH), TEXTS[::-1], batch_size=3)
    assert tokenized == []
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other[::-1])
    assert len(blocks(cache)) == 1
    more, _ = text.embed(encoder, ["a green dog", *TEXTS], batch_size=2)
    assert tokenized == ["a green dog"]
    np.testing.assert_array_equal(more[1:], first[0])
    assert len(blocks(cache)) == 2


def test_other_weights_and_another_length_have_features_of_their_own(
    encoder, folder, tmp_path, reference, tokenized
):
    features, _ = text.embed(encoder, TEXTS[:2])
    longer, _ = text.embed(load(str(folder), LENGTH + 1), TEXTS[:2])
    assert len(tokenized) == 4 and longer.shape[1] == LENGTH + 1
    bert = reference("text.json")["bert"]
    changed = encoders.weights(bert["layers"])
    changed["embeddings.LayerNorm.bias"] = changed["embeddings.LayerNorm.bias"] + 1
    other = load(str(encoders.write(tmp_path / "other", bert, changed)), LENGTH)
    assert (text.embed(other, TEXTS[:2])[0] != features).any()
    assert len(tokenized) == 6
    # the same files elsewhere are the same encoder
    moved = folder.rename(tmp_path / "moved")
    np.testing.assert_array_equal(text.embed(load(str(moved), LENGTH), TEXTS[:2])[0], features)
    assert len(tokenized) == 6


def test_texts_in_several_blocks_and_batches_are_mapped(encoder, cache, monkeypatch):
    whole, mask = text.embed(encoder, TEXTS)
    for path in cache.glob("*"):
        path.rename(path.with_name(f"not-{path.name}"))
    monkeypatch.setattr(module, "BLOCK", 2 * LENGTH * WIDTH * 2)  # two texts
    found = text.table(encoder, TEXTS, batch_size=1)
    assert len(found.blocks) == 2 == len(blocks(cache)) - 1
    assert all(isinstance(block, np.memmap) for block in found.blocks)
    for i in range(len(TEXTS)):
        np.testing.assert_allclose(found.features(i), whole[i], rtol=2**-10, atol=1e-3)
        np.testing.assert_array_equal(found.mask(i), mask[i])
    assert (found.block[0], found.row[0]) == (found.block[2], found.row[2])


def test_what_was_cut_is_noted_also_when_it_is_found(encoder):
    for _ in range(2):
        found = text.table(encoder, TEXTS)
        assert found.notes() == [
            "1 of 5 texts are longer than 6 tokens, which is what the text encoder takes here, "
            "and are cut"
        ]
    assert text.table(encoder, TEXTS[:3]).notes() == []


def test_a_stopped_or_damaged_block_is_computed_anew(encoder, cache, tokenized, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        text.embed(encoder, TEXTS)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    assert all(name.startswith(".") for name in blocks(cache))  # nothing that is read
    features, _ = text.embed(encoder, TEXTS[:3])
    (path,) = cache.glob("*/[!.]*/features.npy")
    path.write_bytes(path.read_bytes()[:-5])
    np.testing.assert_array_equal(text.embed(encoder, TEXTS[:3])[0], features)


def test_without_a_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(text.embed, load(str(folder), LENGTH), ["a dog"])


def test_no_texts(encoder, tokenized):
    features, mask = text.embed(encoder, [])
    assert features.shape == (0, LENGTH, WIDTH) and mask.shape == (0, LENGTH)
    assert tokenized == []


def test_features_that_are_not_finite(tmp_path, reference):
    bert = reference("text.json")["bert"]
    tensors = encoders.weights(bert["layers"])
    name = "encoder.layer.1.output.LayerNorm.weight"
    tensors[name] = np.full_like(tensors[name], 1e6)
    encoder = load(str(encoders.write(tmp_path / "vast", bert, tensors)), LENGTH)
    with pytest.raises(ValueError, match="features are not finite as float16"):
        text.embed(encoder, ["a cat"])


def test_a_cache_that_cannot_be_written(encoder, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in its place")
    assert "cannot be written" in refusal(text.embed, encoder, ["a cat"])
