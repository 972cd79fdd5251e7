"""Autoencoders' weights under diffusers' and CompVis's names, and their numbers by diffusers."""

import json
import sys

import jax
import numpy as np
import pytest
from tensors import assert_same, refusal
from tiny import ROOT

from diffusion_jax.interop import autoencoder_names as names
from diffusion_jax.interop import tiny_names
from diffusion_jax.models.autoencoder import Autoencoder
from diffusion_jax.models.tiny_autoencoder import TinyAutoencoder

KL = Autoencoder(3, latent=4, moments=8, channels=32, channel_mult=(1, 2), blocks=1)
VQ = KL.clone(moments=4, regularizer="vq", codes=16)
TINY = TinyAutoencoder(3, 4, 8, (1, 2), (2, 1))


def shapes(model):
    x = np.zeros((1, 8, 12, 3), np.float32)
    return jax.eval_shape(lambda key: model.init(key, x)["params"], jax.random.key(0))


@pytest.fixture(scope="module")
def recorded(reference):
    """kind -> the tensors whose numbers diffusers computed with."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from record_autoencoders import drawn

    sys.path.pop(0)
    file = reference("autoencoders.npz")
    return {kind: drawn(json.loads(str(file[f"{kind}/shapes"]))) for kind in ("kl", "vq", "tiny")}


@pytest.mark.parametrize(
    ("kind", "model", "room"), [("kl", KL, names), ("vq", VQ, names), ("tiny", TINY, tiny_names)]
)
def test_encodes_and_decodes_as_diffusers(kind, model, room, recorded, reference):
    file = reference("autoencoders.npz")
    params = room.from_names(recorded[kind], shapes(model), model)
    apply = lambda x, method: model.apply({"params": params}, x, method=method)
    encoded, decoded = apply(file["x"], model.encode), apply(file["z"], model.decode)
    for ours, theirs in ((encoded, "encoded"), (decoded, "decoded")):
        expected = file[f"{kind}/{theirs}"]
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_diffusers_names_come_back_bit_for_bit(recorded):
    for kind, model, room in (("kl", KL, names), ("vq", VQ, names), ("tiny", TINY, tiny_names)):
        params = room.from_names(recorded[kind], shapes(model), model)
        assert_same(dict(sorted(room.to_names(params, model).items())),
                    dict(sorted(recorded[kind].items())))  # fmt: skip


def test_compvis_names_hold_the_same_numbers(recorded):
    """The names and shapes are those of CompVis/latent-diffusion's ldm/modules/diffusionmodules/
    model.py, written here by hand."""
    theirs = recorded["kl"]
    params = names.from_names(theirs, shapes(KL), KL)
    other = names.to_names(params, KL, "compvis")
    for ours, diffusers in {
        "encoder.down.0.downsample.conv.weight": "encoder.down_blocks.0.downsamplers.0.conv.weight",
        "encoder.down.1.block.0.nin_shortcut.weight": (
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"
        ),
        "decoder.up.1.block.1.norm2.bias": "decoder.up_blocks.0.resnets.1.norm2.bias",
        "decoder.up.1.upsample.conv.bias": "decoder.up_blocks.0.upsamplers.0.conv.bias",
        "decoder.mid.block_2.conv1.weight": "decoder.mid_block.resnets.1.conv1.weight",
        "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    }.items():
        np.testing.assert_array_equal(other[ours], theirs[diffusers])
    attention = other["decoder.mid.attn_1.k.weight"]
    assert attention.shape == (64, 64, 1, 1)
    to_k = theirs["decoder.mid_block.attentions.0.to_k.weight"]
    np.testing.assert_array_equal(attention[..., 0, 0], to_k)
    # a whole model's file: a prefix, and the U-Net's tensors beside
    whole = {f"first_stage_model.{name}": a for name, a in other.items()}
    whole |= {"model.diffusion_model.out.weight": np.zeros(1), "first_stage_model.loss.logvar": 0}
    jax.tree.map(np.testing.assert_array_equal, names.from_names(whole, shapes(KL), KL), params)
    assert names.infer_model(whole) == names.infer_model(theirs)


def test_names_of_diffusers_before_its_version_0_15(recorded):
    old = {
        name.replace("to_q", "query").replace("to_out.0", "proj_attn"): a
        for name, a in recorded["kl"].items()
    }
    assert old.keys() != recorded["kl"].keys()
    jax.tree.map(
        np.testing.assert_array_equal,
        names.from_names(old, shapes(KL), KL),
        names.from_names(recorded["kl"], shapes(KL), KL),
    )


def test_the_files_of_taesd(recorded):
    """Numbers of its layers as madebyollin/taesd's taesd.py has them, for these blocks."""
    params = tiny_names.from_names(recorded["tiny"], shapes(TINY), TINY)
    published = tiny_names.to_names(params, TINY, "taesd")
    layers = {name.rpartition(".")[0] for name in published}
    encoder = ["0", "1.conv.0", "1.conv.2", "1.conv.4", "2"]
    encoder += [f"{i}.conv.{j}" for i in (3, 4) for j in (0, 2, 4)] + ["5"]
    # a bound on the latents, conv, ReLU, two blocks, the doubling, conv, a block, conv
    decoder = ["1", *(f"{i}.conv.{j}" for i in (3, 4) for j in (0, 2, 4)), "6"]
    decoder += ["7.conv.0", "7.conv.2", "7.conv.4", "8"]
    assert layers == {*(f"encoder.{n}" for n in encoder), *(f"decoder.{n}" for n in decoder)}
    again = tiny_names.from_names(published, shapes(TINY), TINY)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert tiny_names.infer_model(published) == tiny_names.infer_model(recorded["tiny"])


def test_the_architecture_is_read_from_the_file(recorded):
    same = dict(latent=4, channels=32, channel_mult=(1, 2), blocks=1, attention=True)
    same |= dict(critic=0, shortcuts=False)
    assert names.infer_model(recorded["kl"]) == (same | dict(regularizer="kl"), 3)
    assert names.infer_model(recorded["vq"]) == (same | dict(regularizer="vq", codebook=16), 3)
    settings, channels = tiny_names.infer_model(recorded["tiny"])
    assert channels == 3
    assert settings == dict(latent=4, channels=8, encoder_blocks=(1, 2), decoder_blocks=(2, 1))


def test_what_does_not_fit_is_refused_in_a_line(recorded):
    tensors = recorded["kl"]
    less = {n: a for n, a in tensors.items() if n != "encoder.conv_norm_out.bias"}
    read = lambda found: names.from_names(found, shapes(KL), KL)
    assert "missing: encoder.conv_norm_out.bias" in refusal(read, less)
    assert "unexpected: other" in refusal(read, tensors | {"other": np.zeros(1)})
    assert "no encoder.norm_out.weight" in refusal(names.infer_model, {"a": np.zeros(1)})
    less = {n: a for n, a in tensors.items() if not n.startswith("quant_conv")}
    assert "quant_conv.weight is missing" in refusal(names.infer_model, less)
    said = refusal(names.check_config, {"norm_num_groups": 16})
    assert "norm_num_groups=16 is not supported, only 32" in said
    odd = {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}
    assert "AttnDownEncoderBlock2D is not supported" in refusal(names.check_config, odd)
