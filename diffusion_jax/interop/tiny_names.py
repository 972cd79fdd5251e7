"""The weights of others: state dicts of the tiny autoencoder TAESD to flax parameters and back.

"diffusers" has the names of its `AutoencoderTiny`. "taesd" has those of the published files
(madebyollin/taesd), of which there are two, joined here behind `encoder.` and `decoder.`; its
decoder counts one layer more, which has no weights."""

import re
from collections.abc import Iterator
from typing import Any, Literal, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree
from diffusion_jax.interop.files import Tensors, check_fit
from diffusion_jax.models.tiny_autoencoder import TinyAutoencoder

Layout = Literal["diffusers", "taesd"]
LAYOUTS: tuple[Layout, ...] = ("diffusers", "taesd")
LEAVES = {"kernel": "weight", "bias": "bias"}
INSIDE = {"diffusers": "layers.", "taesd": ""}


def layers(model: TinyAutoencoder, layout: Layout) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(torch's name of a layer, path of ours)."""
    inside, number = INSIDE[layout], 0
    for i, count in enumerate(model.encoder_blocks):
        yield f"encoder.{inside}{number}", ("encoder", f"level{i}")
        for j in range(count):
            for k in range(3):
                name = f"encoder.{inside}{number + 1 + j}.conv.{2 * k}"
                yield name, ("encoder", f"level{i}_block{j}", f"conv{k}")
        number += 1 + count
    yield f"encoder.{inside}{number}", ("encoder", "conv_out")

    number = 1 if layout == "taesd" else 0  # what comes first there only bounds the latents
    yield f"decoder.{inside}{number}", ("decoder", "conv_in")
    number += 2  # the convolution and its activation
    for i, count in enumerate(model.decoder_blocks):
        for j in range(count):
            for k in range(3):
                name = f"decoder.{inside}{number + j}.conv.{2 * k}"
                yield name, ("decoder", f"level{i}_block{j}", f"conv{k}")
        last = i == len(model.decoder_blocks) - 1
        number += count + (not last)  # the doubling has a number, too
        yield f"decoder.{inside}{number}", ("decoder", "conv_out" if last else f"level{i}")
        number += 1


def places(params: PyTree, model: TinyAutoencoder, layout: Layout) -> dict[str, tuple[str, ...]]:
    """{torch's name: path} of every parameter."""
    flat = flatten_dict(params)
    return {
        f"{name}.{theirs}": (*path, leaf)
        for name, path in layers(model, layout)
        for leaf, theirs in LEAVES.items()
        if (*path, leaf) in flat
    }


def to_names(params: PyTree, model: TinyAutoencoder, layout: Layout = "diffusers") -> Tensors:
    """Parameters of a tiny autoencoder -> a state dict."""
    flat = flatten_dict(jax.device_get(params))
    turned = lambda a: a.transpose(3, 2, 0, 1) if a.ndim == 4 else a
    # contiguous, because safetensors writes a transposed view's bytes in the wrong order
    return {
        name: np.ascontiguousarray(turned(flat[path]))
        for name, path in places(params, model, layout).items()
    }


def from_names(tensors: Tensors, like: PyTree, model: TinyAutoencoder) -> PyTree:
    """A state dict of either layout -> parameters of a tiny autoencoder, in NumPy.

    like: parameters of the same model, or their shapes. Raises UserError for tensors that are
    missing, unexpected or of another shape."""
    found, flat = places(like, model, layout_of(tensors)), cast(dict, flatten_dict(like))
    turned = lambda shape: tuple(shape[i] for i in (3, 2, 0, 1)) if len(shape) == 4 else shape
    check_fit(tensors, {name: turned(flat[path].shape) for name, path in found.items()})
    back = lambda a: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a
    return unflatten_dict(
        {path: np.ascontiguousarray(back(tensors[name])) for name, path in found.items()}
    )


def layout_of(tensors: Tensors) -> Layout:
    """The layout of a state dict. Raises UserError for what is none of a tiny autoencoder."""
    if "encoder.layers.0.weight" in tensors:
        return "diffusers"
    if "encoder.0.weight" in tensors:
        return "taesd"
    raise UserError("these are not the weights of a tiny autoencoder: no encoder.layers.0.weight")


def infer_model(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """(settings of the factory `tiny_autoencoder`, channels of the images).

    Raises UserError for what is no such autoencoder."""
    inside = INSIDE[layout_of(tensors)]

    def counts(half: str) -> tuple[tuple[int, ...], list[np.ndarray]]:
        """(blocks between two convolutions, the convolutions) of a half, in order."""
        pattern = re.compile(rf"{half}\.{re.escape(inside)}(\d+)\.(conv\.0\.)?weight")
        found = sorted(
            (int(m[1]), bool(m[2]), name) for name in tensors if (m := pattern.fullmatch(name))
        )
        blocks, convolutions = [], []
        for _, is_block, name in found:
            if is_block and blocks:
                blocks[-1] += 1
            else:
                blocks.append(0)
                convolutions.append(tensors[name])
        return tuple(blocks[:-1]), convolutions

    (down, encoder), (up, decoder) = counts("encoder"), counts("decoder")
    if len(encoder) < 2 or len(decoder) < 2 or any(a.ndim != 4 for a in encoder + decoder):
        raise UserError("these are not the weights of a tiny autoencoder: layers are missing")
    channels, image_channels = encoder[0].shape[:2]
    settings = {
        "latent": encoder[-1].shape[0],
        "channels": channels,
        "encoder_blocks": down,
        "decoder_blocks": up,
    }
    return settings, image_channels
