"""The weights of others: state dicts of latent diffusion's autoencoders to flax parameters and
back.

"diffusers" has the names of its `AutoencoderKL` and `VQModel`, those of before version 0.15 as
well, "compvis" those of CompVis/latent-diffusion (Rombach et al. 2022), behind the prefix
`first_stage_model.` where the file holds a whole model. A state dict is {name: float32 array};
convolutions in it are [out, in, height, width], linear layers [out, in]."""

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree
from diffusion_jax.interop.files import Tensors, check_fit
from diffusion_jax.models.autoencoder import Autoencoder

Layout = Literal["diffusers", "compvis"]
LAYOUTS: tuple[Layout, ...] = ("diffusers", "compvis")
PREFIX = "first_stage_model."  # of a whole model's file
CODEBOOK = "quantize.embedding.weight"
CRITIC = "critic"  # of ours, which no file has
REGULARIZERS = ("kl", "vq")
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}

# Ours -> theirs, in a block and around it. A tuple holds the equal parts of the outputs.
BLOCK = ("norm1", "conv1", "norm2", "conv2")
DIFFUSERS = {
    "skip": "conv_shortcut",
    "norm": "group_norm",
    "qkv": ("to_q", "to_k", "to_v"),
    "out": "to_out.0",
    "norm_out": "conv_norm_out",
    "middle": "mid_block",
    "block": "resnets.{}",
    "attention": "attentions.0",
    "down": "down_blocks.{}",
    "up": "up_blocks.{}",
    "halve": "downsamplers.0.conv",
    "double": "upsamplers.0.conv",
    "middle_block": "resnets.{}",
}
COMPVIS = {
    "skip": "nin_shortcut",
    "norm": "norm",
    "qkv": ("q", "k", "v"),
    "out": "proj_out",
    "norm_out": "norm_out",
    "middle": "mid",
    "block": "block.{}",
    "attention": "attn_1",
    "down": "down.{}",
    "up": "up.{}",
    "halve": "downsample.conv",
    "double": "upsample.conv",
    "middle_block": "block_{}",
}
NAMES: dict[str, dict[str, Any]] = {"diffusers": DIFFUSERS, "compvis": COMPVIS}
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of diffusers


class Place(NamedTuple):
    """Where a tensor's numbers lie: in a parameter, or in part i of n of its outputs."""

    path: tuple[str, ...]
    part: int = 0
    parts: int = 1


def layers(model: Autoencoder, layout: Layout) -> Iterator[tuple[str, Place]]:
    """(torch's name of a layer, place of the layer) of all that an autoencoder may have."""
    names, last = NAMES[layout], len(model.channel_mult) - 1
    first = 0 if layout == "diffusers" else 1  # of the middle's blocks

    def block(theirs: str, *ours: str) -> Iterator[tuple[str, Place]]:
        for layer in BLOCK:
            yield f"{theirs}.{layer}", Place((*ours, layer))
        yield f"{theirs}.{names['skip']}", Place((*ours, "skip"))

    def middle(half: str) -> Iterator[tuple[str, Place]]:
        inside = f"{half}.{names['middle']}"
        for i in (0, 1):
            name = names["middle_block"].format(i + first)
            yield from block(f"{inside}.{name}", half, f"middle_block{i}")
        attention, ours = f"{inside}.{names['attention']}", (half, "middle_attention")
        yield f"{attention}.{names['norm']}", Place((*ours, "norm"))
        for i, part in enumerate(names["qkv"]):
            yield f"{attention}.{part}", Place((*ours, "qkv"), i, 3)
        yield f"{attention}.{names['out']}", Place((*ours, "out"))

    for half in ("encoder", "decoder"):
        for layer, theirs in (("conv_in",) * 2, ("norm_out", names["norm_out"]), ("conv_out",) * 2):
            yield f"{half}.{theirs}", Place((half, layer))
        yield from middle(half)
    for i in range(last + 1):
        inside = f"encoder.{names['down'].format(i)}"
        for j in range(model.blocks):
            name = names["block"].format(j)
            yield from block(f"{inside}.{name}", "encoder", f"down{i}_block{j}")
        yield f"{inside}.{names['halve']}", Place(("encoder", f"down{i}"))
        # diffusers counts the way back from the lowest resolution
        level = last - i if layout == "diffusers" else i
        inside = f"decoder.{names['up'].format(level)}"
        for j in range(model.blocks + 1):
            name = names["block"].format(j)
            yield from block(f"{inside}.{name}", "decoder", f"up{i}_block{j}")
        yield f"{inside}.{names['double']}", Place(("decoder", f"up{i}"))
    for layer in ("quant_conv", "post_quant_conv"):
        yield layer, Place((layer,))


def places(params: PyTree, model: Autoencoder, layout: Layout) -> dict[str, Place]:
    """{torch's name: place} of every parameter but the critic's. Raises UserError for one without a
    name there, and for latents that the layouts do not know."""
    if model.regularizer not in REGULARIZERS:
        known = " and ".join(REGULARIZERS)
        raise UserError(f"{layout} has names for the regularizers {known}, not {model.regularizer}")
    flat = {path: a for path, a in flatten_dict(params).items() if path[0] != CRITIC}
    found = {
        f"{name}.{LEAVES[leaf]}": place._replace(path=(*place.path, leaf))
        for name, place in layers(model, layout)
        for leaf in LEAVES
        if (*place.path, leaf) in flat
    }
    if ("codebook",) in flat:
        found[CODEBOOK] = Place(("codebook",))
    known = {place.path for place in found.values()}
    if others := ["/".join(path) for path in flat if path not in known]:
        raise UserError(f"this autoencoder has {others[0]!r}, which {layout} has no name for")
    return found


def _to_torch(a, place: Place, layout: Layout):
    """What a parameter holds at a place, in torch's layout; CompVis's attention is of 1 x 1
    convolutions."""
    a = np.split(a, place.parts, axis=-1)[place.part]
    if place.path[-1] != "kernel":
        return a
    if a.ndim == 4:
        return a.transpose(3, 2, 0, 1)
    return a.T[..., None, None] if layout == "compvis" else a.T


def _to_flax(a, place: Place, ndim: int):
    """The inverse of _to_torch, of one part, for a parameter of so many axes."""
    if place.path[-1] != "kernel":
        return a
    return a.transpose(2, 3, 1, 0) if ndim == 4 else a.reshape(a.shape[:2]).T


def to_names(params: PyTree, model: Autoencoder, layout: Layout = "diffusers") -> Tensors:
    """Parameters of an autoencoder -> a state dict."""
    flat = flatten_dict(jax.device_get(params))
    # contiguous, because safetensors writes a transposed view's bytes in the wrong order
    return {
        name: np.ascontiguousarray(_to_torch(flat[place.path], place, layout))
        for name, place in places(params, model, layout).items()
    }


def from_names(tensors: Tensors, like: PyTree, model: Autoencoder) -> PyTree:
    """A state dict of either layout -> parameters of an autoencoder, in NumPy.

    like: parameters of the same model, or their shapes. Raises UserError for tensors that are
    missing, unexpected or of another shape; what a whole model's file holds beside the autoencoder
    and its loss is passed over."""
    tensors = own(tensors)
    layout = layout_of(tensors)
    found, flat = places(like, model, layout), cast(dict, flatten_dict(like))
    zero = lambda path: np.broadcast_to(np.float32(0), flat[path].shape)  # without the memory
    shapes = {n: _to_torch(zero(p.path), p, layout).shape for n, p in found.items()}
    trimmed = lambda shape: tuple(shape[:2]) if shape[2:] == (1, 1) else tuple(shape)
    check_fit(tensors, shapes, lambda one, other: trimmed(one) == trimmed(other))
    parts: dict[tuple[str, ...], list] = {}
    for name, place in found.items():  # the parts of one parameter follow each other
        array = _to_flax(tensors[name], place, flat[place.path].ndim)
        parts.setdefault(place.path, []).append(array)
    whole = lambda arrays: np.ascontiguousarray(np.concatenate(arrays, axis=-1))
    return unflatten_dict({path: whole(arrays) for path, arrays in parts.items()})


def own(tensors: Tensors) -> Tensors:
    """The autoencoder's tensors of a state dict, under the newer names: without a prefix, and
    without the loss's, the average's and the rest of a whole model's."""
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {n.removeprefix(PREFIX): a for n, a in tensors.items() if n.startswith(PREFIX)}
    kept = {n: a for n, a in tensors.items() if not n.startswith(("loss.", "model_ema."))}
    pattern = re.compile(r"(mid_block\.attentions\.0\.)(\w+)(\.(?:weight|bias))")

    def newer(name: str) -> str:
        return pattern.sub(lambda m: f"{m[1]}{OLD.get(m[2], m[2])}{m[3]}", name)

    return {newer(name): array for name, array in kept.items()}


def layout_of(tensors: Tensors) -> Layout:
    """The layout of a state dict. Raises UserError for what is none of an autoencoder."""
    for layout in LAYOUTS:
        if f"encoder.{NAMES[layout]['norm_out']}.weight" in tensors:
            return layout
    raise UserError(
        "these are not the weights of a latent diffusion's autoencoder: no encoder.norm_out.weight "
        "or encoder.conv_norm_out.weight"
    )


def infer_model(tensors: Tensors) -> tuple[dict[str, Any], int]:
    """(settings of the factory `autoencoder`, channels of the images), as a state dict's names and
    shapes tell. Raises UserError for what is no such autoencoder."""
    tensors = own(tensors)
    names = NAMES[layout_of(tensors)]

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim < 2:
            raise UserError(f"these are not the weights of a latent diffusion's autoencoder: {name}"
                            " is missing")  # fmt: skip
        return tensors[name].shape

    having = lambda pattern: {
        int(match[1]) for match in (re.match(pattern, name) for name in tensors) if match
    }
    inside = re.escape(names["down"]).replace(r"\{\}", r"(\d+)")
    levels = len(having(rf"encoder\.{inside}\."))
    first = f"encoder.{names['down'].format(0)}."
    block = re.escape(names["block"]).replace(r"\{\}", r"(\d+)")
    blocks = len(having(rf"{re.escape(first)}{block}\."))
    channels, image_channels = shape("encoder.conv_in.weight")[:2]
    widths = [
        shape(f"encoder.{names['down'].format(i)}.{names['block'].format(0)}.conv1.weight")[0]
        for i in range(levels)
    ]
    moments, latent = shape("quant_conv.weight")[0], shape("post_quant_conv.weight")[1]
    if any(width % channels for width in widths) or shape("decoder.conv_out.weight")[0] != (
        image_channels
    ):
        raise UserError(f"an autoencoder with levels of {widths} channels, begun with {channels}, "
                        "is not supported")  # fmt: skip
    codebook = len(tensors[CODEBOOK]) if CODEBOOK in tensors else 0
    if moments != (latent if codebook else 2 * latent):
        raise UserError(f"{moments} channels encoded for {latent} decoded are not supported")
    settings = {
        "latent": latent,
        "channels": channels,
        "channel_mult": tuple(width // channels for width in widths),
        "blocks": blocks,
        "attention": f"encoder.{names['middle']}.{names['attention']}.{names['norm']}.weight"
        in tensors,
    }
    quantised = {"regularizer": "vq", "codebook": codebook} if codebook else {"regularizer": "kl"}
    return settings | quantised | {"critic": 0, "shortcuts": False}, image_channels


# What diffusers' config.json may say, where the names and shapes do not tell.
ASSUMED: dict[str, Any] = {
    "norm_num_groups": 32,
    "act_fn": "silu",
    "norm_type": "group",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "lookup_from_codebook": False,
}


def check_config(values: dict[str, Any]) -> None:
    """Raises UserError where diffusers' config.json says what this autoencoder is not."""
    for name, value in ASSUMED.items():
        if values.get(name, value) != value:
            raise UserError(f"an autoencoder with {name}={values[name]} is not supported, only "
                            f"{value}")  # fmt: skip
    for name, kind in (("down_block_types", "DownEncoderBlock2D"),
                       ("up_block_types", "UpDecoderBlock2D")):  # fmt: skip
        if others := [one for one in values.get(name, ()) if one != kind]:
            raise UserError(f"an autoencoder with {others[0]} is not supported, only {kind}")
