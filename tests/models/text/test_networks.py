"""The networks of text encoders, beside those of `transformers`."""

import numpy as np
import pytest
from encoders import EXACT, features, without_tokenizer

from diffusion_jax.models.text import load
from diffusion_jax.models.text.t5 import buckets

CASES = ["bert", "clip", "t5", "t5_gated"]
# with heads around the encoder, or the other half of a model: what a folder may hold as well
LARGER = {
    "bert": "BertForMaskedLM",
    "clip": "CLIPTextModelWithProjection",
    "t5": "T5ForConditionalGeneration",
    "t5_gated": "MT5EncoderModel",
}


@pytest.fixture(params=CASES)
def name(request):
    return request.param


@pytest.fixture
def case(reference, name):
    return reference("text.json")[name]


def test_the_last_layer_is_a_peers(reference, name, case, tmp_path):
    peer = reference("text.npz")
    encoder = load(without_tokenizer(tmp_path, case))
    assert encoder.width == peer[name].shape[2]
    found = features(encoder, peer["ids"], peer["mask"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, peer[name], **EXACT)


@pytest.mark.parametrize("larger", [False, True])
def test_a_folder_that_transformers_saves_gives_its_features(name, case, tmp_path, larger):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    plain = {"bert": "BertModel", "clip": "CLIPTextModel"}.get(name, "T5EncoderModel")
    kind = getattr(transformers, LARGER[name] if larger else plain)
    torch.manual_seed(1)
    config = {key: value for key, value in case["config"].items() if key != "model_type"}
    model = kind(kind.config_class(**config, decoder_start_token_id=0)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms as well
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path)
    ids = np.random.default_rng(2).integers(0, 40, (4, 17)).astype(np.int32)
    mask = (np.arange(17) < np.array([[17], [3], [9], [16]])).astype(np.float32)
    inner = {"bert": "bert", "clip": "text_model", "t5": "encoder"}.get(name) if larger else None
    inner = getattr(model, inner) if inner else model
    with torch.no_grad():
        told = dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
        wanted = inner(**told).last_hidden_state.numpy()
    there = mask > 0
    found = features(load(str(tmp_path)), ids, mask)
    np.testing.assert_allclose(found[there], wanted[there], **EXACT)


def test_padding_changes_no_feature(name, case, tmp_path):
    encoder = load(without_tokenizer(tmp_path, case))
    ids = np.random.default_rng(3).integers(0, 40, (2, 9)).astype(np.int32)
    mask = np.tile((np.arange(9) < 5).astype(np.float32), (2, 1))
    other = np.where(mask > 0, ids, 7)
    found = features(encoder, ids, mask)[:, :5]
    np.testing.assert_array_equal(found, features(encoder, other, mask)[:, :5])
    assert np.isfinite(features(encoder, ids, np.zeros_like(mask))).all()  # no token at all


def test_a_token_of_clip_knows_those_before_it_alone(reference, tmp_path):
    encoder = load(without_tokenizer(tmp_path, reference("text.json")["clip"]))
    ids, mask = np.arange(8, dtype=np.int32)[None], np.ones((1, 8), np.float32)
    later = np.where(np.arange(8) < 6, ids, 30)
    first, second = (features(encoder, one, mask)[0] for one in (ids, later))
    np.testing.assert_array_equal(first[:6], second[:6])
    assert (first[6:] != second[6:]).any(axis=1).all()


def test_buckets_of_offsets_are_the_papers():
    """32 buckets up to 128: 8 single ones each way, then 2^(k/2) 8, k = 0 ... 7, begin one each, so
    that whole numbers alone tell them."""
    distance = np.arange(300)
    grown = (distance[:, None] ** 2 >= 64 * 2 ** np.arange(8)).sum(axis=1) - 1
    wanted = np.where(distance < 8, distance, 8 + grown)
    np.testing.assert_array_equal(buckets(-distance, 32, 128), wanted)
    np.testing.assert_array_equal(buckets(distance[1:], 32, 128), wanted[1:] + 16)
