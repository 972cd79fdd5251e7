"""The weights of others: state dicts of Improved DDPM's and ADM's U-Nets to flax parameters and
back.

The names are those of openai/improved-diffusion (Nichol & Dhariwal 2021) and
openai/guided-diffusion (ADM, Dhariwal & Nichol 2021). A state dict is {name: float32 array};
convolutions in it are [out, in, height, width], linear layers [out, in], the attention's two [out,
in, 1]."""

import re
from collections.abc import Container, Iterator
from typing import Any, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree
from diffusion_jax.interop.files import Tensors, check_fit
from diffusion_jax.models.unet import UNet

# Within a block, torch's name of a layer -> ours. The numbers count the layers without parameters,
# too.
RES_BLOCK = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "embedding"}
RES_BLOCK |= {"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "skip"}
ATTENTION = {"norm": "norm", "qkv": "qkv", "proj_out": "out"}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def blocks(model: UNet, names: Container[str]) -> Iterator[tuple[str, str]]:
    """(torch prefix, flax name) of all blocks that a U-Net may have, in a state dict's order.
    names: those that it has."""
    levels = range(len(model.channel_mult))
    down, up = ("", "") if model.resample_blocks else (".op", ".conv")
    yield from (("time_embed.0", "time1"), ("time_embed.2", "time2"), ("label_emb", "label"))
    yield "input_blocks.0.0", "conv_in"
    n = 1
    for i in levels:
        for j in range(model.blocks):
            yield f"input_blocks.{n}.0", f"down{i}_block{j}"
            yield f"input_blocks.{n}.1", f"down{i}_attention{j}"
            n += 1
        yield f"input_blocks.{n}.0{down}", f"down{i}_resample"
        n += 1

    yield "middle_block.0", "middle_block0"
    yield "middle_block.1", "middle_attention"
    yield "middle_block.2", "middle_block1"

    n = 0
    for i in reversed(levels):
        for j in range(model.blocks + 1):
            yield f"output_blocks.{n}.0", f"up{i}_block{j}"
            yield f"output_blocks.{n}.1", f"up{i}_attention{j}"
            n += 1
        # Upsampling is the last element of its level's last block, not a block of its own.
        yield (
            f"output_blocks.{n - 1}.{2 if f'up{i}_attention0' in names else 1}{up}",
            f"up{i}_resample",
        )
    yield from (("out.0", "norm_out"), ("out.2", "conv_out"))


def torch_names(params: PyTree, model: UNet) -> dict[str, tuple[str, ...]]:
    """{torch name: path in the flax parameters} of every parameter, in a state dict's order.

    Raises UserError for a U-Net with layers that the state dicts have no place for, as one that is
    told of augmentations has."""
    known = {name for _, name in blocks(model, params)}
    others = [name for name in params if name not in known]
    if others:
        raise UserError(
            f"this U-Net has a layer {others[0]!r}, which Improved DDPM's and ADM's weights lack"
            + (": the run's conditioning names augmentation" * (others[0] == "augmentation"))
        )
    paths = {}
    for prefix, block in blocks(model, params):
        if block not in params:
            continue
        inner = (
            RES_BLOCK if "norm1" in params[block] else ATTENTION if "qkv" in params[block] else None
        )
        layers = (
            {f"{prefix}.{end}": (block, name) for end, name in inner.items()}
            if inner
            else {prefix: (block,)}
        )
        for layer, path in layers.items():
            leaves = params[block] if len(path) == 1 else params[block].get(path[1], {})
            paths |= {f"{layer}.{LEAVES[leaf]}": (*path, leaf) for leaf in LEAVES if leaf in leaves}
    return paths


def _swap(rows, first: int, second: int):
    """Rows counted by (first, second, rest), first outermost -> counted by (second, first,
    rest)."""
    return rows.reshape(first, second, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def _heads(path: tuple[str, ...], size: int, model: UNet) -> int | None:
    """Heads of a qkv parameter of `size` outputs whose rows the legacy order swaps; None for all
    others."""
    if path[-2] != "qkv":
        return None
    return size // 3 // model.head_channels if model.head_channels else model.heads


def _to_torch(a, path: tuple[str, ...], model: UNet, new_attention_order: bool):
    """One parameter in torch's layout.

    The legacy order, of Improved DDPM and of ADM's default, has the heads outermost in the 3C
    outputs of qkv, and each head's q, k and v within; the new order, as here, has q, k and v
    outermost."""
    heads = _heads(path, a.shape[-1], model)
    if path[-1] == "kernel":
        a = a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T
    if heads and not new_attention_order:
        a = _swap(a, 3, heads)
    return a[..., None] if "attention" in path[0] and path[-1] == "kernel" else a


def _to_flax(a, path: tuple[str, ...], model: UNet, new_attention_order: bool):
    """The inverse of _to_torch."""
    if "attention" in path[0] and path[-1] == "kernel":
        a = a[..., 0]
    heads = _heads(path, a.shape[0], model)
    if heads and not new_attention_order:
        a = _swap(a, heads, 3)
    if path[-1] == "kernel":
        a = a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T
    return np.ascontiguousarray(a)


def to_torch_names(params: PyTree, model: UNet, new_attention_order: bool = False) -> Tensors:
    """Parameters of a U-Net -> a state dict, in the original's order."""
    flat = flatten_dict(jax.device_get(params))
    names = torch_names(params, model)
    # Contiguous, because safetensors writes a transposed view's bytes in the wrong order.
    return {
        n: np.ascontiguousarray(_to_torch(flat[p], p, model, new_attention_order))
        for n, p in names.items()
    }


def from_torch_names(
    tensors: Tensors, like: PyTree, model: UNet, new_attention_order: bool = False
) -> PyTree:
    """A state dict -> parameters of a U-Net, in NumPy.

    like: parameters of the same model, or their shapes. The attention's weights may be those of
    linear layers, Conv1d or Conv2d. Raises UserError naming tensors that are missing, unexpected or
    of another shape."""
    names, flat = torch_names(like, model), cast(dict, flatten_dict(like))
    zero = lambda path: np.broadcast_to(
        np.float32(0), flat[path].shape
    )  # the shape, without the memory
    shapes = {
        name: _to_torch(zero(path), path, model, new_attention_order).shape
        for name, path in names.items()
    }

    # Attention by linear layers or Conv2d differs in ones at the end.
    trimmed = lambda shape: shape[:1] + tuple(np.trim_zeros(np.array(shape[1:]) - 1, "b") + 1)
    check_fit(tensors, shapes, lambda one, other: trimmed(one) == trimmed(other))
    convert = lambda name, path: _to_flax(
        tensors[name].reshape(shapes[name]), path, model, new_attention_order
    )
    return unflatten_dict({path: convert(name, path) for name, path in names.items()})


def infer_model(tensors: Tensors, height: int) -> tuple[dict[str, Any], int, int]:
    """(settings of the factory `unet`, channels of the images, number of classes or 0), as far as a
    state dict's names and shapes tell.

    heads, head_channels and time_scale cannot be read, nor the images' height, in pixels, that the
    settings count attention by. Raises UserError for what is no U-Net of Improved DDPM or ADM."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim < 1 + name.endswith("weight"):
            raise UserError(
                f"these are not the weights of an Improved DDPM or ADM U-Net: no {name}"
            )
        return tensors[name].shape

    having = lambda pattern: {
        int(match[1]) for match in (re.match(pattern, name) for name in tensors) if match
    }
    channels = shape("time_embed.0.weight")[1]
    start, image_channels = shape("input_blocks.0.0.weight")[:2]
    out_channels, middle = shape("out.2.weight")[0], shape("middle_block.0.in_layers.2.weight")[0]

    inputs, outputs = having(r"input_blocks\.(\d+)\."), having(r"output_blocks\.(\d+)\.")
    upsampling_blocks = having(r"output_blocks\.(\d+)\.[12]\.in_layers\.")
    levels = 1 + len(upsampling_blocks | having(r"output_blocks\.(\d+)\.[12]\.conv\."))
    of_level = len(outputs) // levels  # one output block more than residual blocks a level
    if not inputs == outputs == set(range(levels * of_level)) or of_level < 2:
        raise UserError(
            f"these weights have {len(inputs)} input and {len(outputs)} output blocks on {levels} "
            "levels; a U-Net whose resampling has weights has equally many, a multiple of its "
            "levels"
        )
    begins = [
        (levels - 1 - i) * of_level for i in range(levels)
    ]  # the first output block of level i
    widths = [shape(f"output_blocks.{n}.0.in_layers.2.weight")[0] for n in begins]
    if start != channels or any(width % channels for width in widths):
        raise UserError(
            f"levels of {widths} channels, begun with {start}, on an embedding of {channels} are "
            "not supported"
        )
    if out_channels not in (image_channels, 2 * image_channels):
        raise UserError(
            f"{out_channels} output channels for {image_channels} are neither the image's nor "
            "twice as many"
        )
    if height < 1 or height % 2 ** (levels - 1):
        raise UserError(
            f"images of height {height} cannot be halved {levels - 1} times, as these weights do"
        )

    attended = having(r"output_blocks\.(\d+)\.1\.qkv\.")
    settings = dict(
        channels=channels,
        channel_mult=tuple(width // channels for width in widths),
        blocks=of_level - 1,
        attention_resolutions=tuple(
            height // 2**i for i, n in enumerate(begins) if attended & set(range(n, n + of_level))
        ),
        scale_shift=shape("middle_block.0.emb_layers.1.weight")[0] == 2 * middle,
        resample_blocks=bool(upsampling_blocks),
        learned_variance=out_channels == 2 * image_channels,
    )
    classes = shape("label_emb.weight")[0] if "label_emb.weight" in tensors else 0
    return settings, image_channels, classes
