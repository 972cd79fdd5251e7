"""A run that is told features of texts by an encoder of others."""

import encoders
import numpy as np
import pytest
from tensors import refusal
from tiny import tiny_config

from diffusion_jax.core.types import Kind
from diffusion_jax.data import texts
from diffusion_jax.models.text import embed, load
from diffusion_jax.runs.build import batch_spec, build, load_source
from diffusion_jax.runs.config import use
from diffusion_jax.runs.prompts import Prompts

pytest.importorskip("tokenizers", reason="needs the package tokenizers")
CAPTIONS = ["a red cat", "the dog", "a small cup on the large dog"] * 10
LENGTH, WIDTH = 6, 16


@pytest.fixture
def config(tmp_path, monkeypatch, reference):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = encoders.write(tmp_path / "encoder", reference("text.json")["bert"])
    images = np.zeros((len(CAPTIONS), 8, 8, 1), np.uint8)
    np.savez(tmp_path / "captions.npz", images=images, text=texts.encode(CAPTIONS, 40))
    config = tiny_config()
    config.data.source = use("arrays", folder=str(tmp_path / "captions.npz"))
    config.data.num_classes, config.data.flip = 0, False
    config.conditioning = use("text", encoder=str(folder), length=LENGTH)
    return config


def test_its_examples_have_the_features_of_their_texts(config):
    source = load_source(config, "train")
    chosen = [texts.decode(source[i]["text"]) for i in range(3)]
    assert chosen == CAPTIONS[1:4]  # the first is held out
    with pytest.warns(UserWarning, match="1 of 3 texts are longer"):
        features, mask = embed(load(config.conditioning.text.encoder, LENGTH), chosen)
    for i in range(3):
        np.testing.assert_array_equal(source[i]["text_features"], features[i])
        np.testing.assert_array_equal(source[i]["text_mask"], mask[i])
    (note,) = source.notes
    assert note.startswith("1 of 3 texts are longer than 6 tokens")


def test_its_network_is_told_a_sequence_also_of_prompts(config):
    parts = build(config)
    assert parts.conditioner.kinds == {"text": Kind("sequence", WIDTH)}
    spec = batch_spec(config, parts, 4)
    assert spec["text_features"].shape == (4, LENGTH, WIDTH)
    assert spec["text_mask"].shape == (4, LENGTH)
    config.sampling.prompts = ("the red cat", "a cup")
    asked = Prompts(config, parts).asked(np.arange(3))
    features, mask = embed(load(config.conditioning.text.encoder, LENGTH), config.sampling.prompts)
    np.testing.assert_array_equal(asked["text_features"], features[[0, 1, 0]])
    np.testing.assert_array_equal(asked["text_mask"], mask[[0, 1, 0]])


def test_what_is_wrong_is_one_line(config):
    config.conditioning.text.length = 21
    wanted = "config.conditioning.text: length must be from 1 to 20, tokens that "
    assert refusal(build, config).startswith(wanted)
    config.conditioning.text.length = LENGTH
    config.conditioning.text.encoder = "nowhere"
    assert "no text encoder 'nowhere'" in refusal(build, config)
