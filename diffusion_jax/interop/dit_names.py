"""The weights of others: state dicts of DiT, in two layouts, to flax parameters and back.

"dit" has the names of the published weights (facebookresearch/DiT, Peebles & Xie 2023), "diffusers"
those of diffusers' `DiTTransformer2DModel`, which repeats the embeddings of t and of the label in
every block. A state dict is {name: float32 array}; the patches' layer in it is a convolution [out,
in, height, width], linear layers are [out, in]."""

import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree
from diffusion_jax.interop.files import Tensors, check_fit
from diffusion_jax.models.dit import SIZES, DiT
from diffusion_jax.models.embeddings import grid_sinusoids

Layout = Literal["dit", "diffusers"]
EMBEDDINGS = ("time1", "time2", "label")
BLOCK = ("self/qkv", "self/out", "mlp/dense1", "mlp/dense2", "modulation")
LEAVES = {"kernel": "weight", "bias": "bias", "embedding": "weight"}
POSITIONS = "pos_embed"  # of "dit": fixed, so no parameter here

# Ours -> theirs. A tuple holds the equal parts of the outputs.
DIT = {
    "patch": "x_embedder.proj",
    "time1": "t_embedder.mlp.0",
    "time2": "t_embedder.mlp.2",
    "label": "y_embedder.embedding_table",
    "self/qkv": "attn.qkv",
    "self/out": "attn.proj",
    "mlp/dense1": "mlp.fc1",
    "mlp/dense2": "mlp.fc2",
    "modulation": "adaLN_modulation.1",
    "dense_out": "final_layer.linear",
    "modulation_out": "final_layer.adaLN_modulation.1",
}
DIFFUSERS = {
    "patch": "pos_embed.proj",
    "time1": "norm1.emb.timestep_embedder.linear_1",
    "time2": "norm1.emb.timestep_embedder.linear_2",
    "label": "norm1.emb.class_embedder.embedding_table",
    "modulation": "norm1.linear",
    "self/qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "self/out": "attn1.to_out.0",
    "mlp/dense1": "ff.net.0.proj",
    "mlp/dense2": "ff.net.2",
    "modulation_out": "proj_out_1",
    "dense_out": "proj_out_2",
}
LAYOUTS = {"dit": (DIT, "blocks"), "diffusers": (DIFFUSERS, "transformer_blocks")}
PLAIN = {  # the settings of a network that the layouts have names for
    "norm": "layer",
    "qk_norm": False,
    "positions": "sincos",
    "mlp": "gelu",
    "told": "adaln",
    "long_skips": False,
    "bottleneck": 0,
}


class Place(NamedTuple):
    """Where a tensor's numbers lie: in a parameter, or in part i of n of its outputs."""

    path: tuple[str, ...]
    part: int = 0
    parts: int = 1


def layers(model: DiT, layout: Layout) -> Iterator[tuple[str, Place]]:
    """(torch's name of a layer, place of the layer), in a state dict's order."""
    names, blocks = LAYOUTS[layout]

    def of(layer: str, theirs: str = "", ours: tuple[str, ...] = ()) -> Iterator:
        parts = names[layer] if isinstance(names[layer], tuple) else (names[layer],)
        for i, part in enumerate(parts):
            yield theirs + part, Place((*ours, *layer.split("/")), i, len(parts))

    for layer in names:
        if layer not in BLOCK and (layout == "dit" or layer not in EMBEDDINGS):
            yield from of(layer)
        if layer == ("label" if layout == "dit" else "patch"):
            for i in range(model.depth):
                for inner in names:
                    if inner in BLOCK:
                        yield from of(inner, f"{blocks}.{i}.", (f"block{i}",))
                    elif layout == "diffusers" and inner in EMBEDDINGS:
                        yield from of(inner, f"{blocks}.{i}.")


def places(params: PyTree, model: DiT, layout: Layout) -> dict[str, Place]:
    """{torch's name: place} of every parameter.

    Raises UserError for a network with settings or layers that the layouts have no names for."""
    for name, value in PLAIN.items():
        if getattr(model, name) != value:
            raise UserError(f"DiT's weights have {name}={value}, not {getattr(model, name)}")
    flat = flatten_dict(params)
    found = {
        f"{name}.{LEAVES[leaf]}": place._replace(path=(*place.path, leaf))
        for name, place in layers(model, layout)
        for leaf in LEAVES
        if (*place.path, leaf) in flat
    }
    known = {place.path for place in found.values()}
    if others := [path for path in flat if path not in known]:
        raise UserError(f"this DiT has a layer {others[0][0]!r}, which DiT's weights lack")
    return found


def _to_torch(a, place: Place, model: DiT):
    """What a parameter holds at a place, in torch's layout."""
    a = np.split(a, place.parts, axis=-1)[place.part]
    if place.path[0] == "patch" and a.ndim == 2:
        return a.reshape(model.patch, model.patch, -1, a.shape[-1]).transpose(3, 2, 0, 1)
    return a.T if place.path[-1] == "kernel" else a


def _to_flax(a, place: Place):
    """The inverse of _to_torch, of one part."""
    if a.ndim == 4:
        return a.transpose(2, 3, 1, 0).reshape(-1, len(a))
    return a.T if place.path[-1] == "kernel" else a


def positions(model: DiT, height: int, width: int) -> np.ndarray:
    """The sinusoids of the grid of patches, as the published weights hold them, [1, N, width]."""
    return grid_sinusoids(height // model.patch, width // model.patch, model.width)[None]


def to_names(
    params: PyTree, model: DiT, height: int, width: int, layout: Layout = "dit"
) -> Tensors:
    """Parameters of a DiT for images of height and width -> a state dict."""
    flat = flatten_dict(jax.device_get(params))
    tensors = {POSITIONS: positions(model, height, width)} if layout == "dit" else {}
    for name, place in places(params, model, layout).items():
        # contiguous, because safetensors writes a transposed view's bytes in the wrong order
        tensors[name] = np.ascontiguousarray(_to_torch(flat[place.path], place, model))
    return tensors


def from_names(tensors: Tensors, like: PyTree, model: DiT, height: int, width: int) -> PyTree:
    """A state dict of either layout -> parameters of a DiT for images of height and width, in
    NumPy.

    like: parameters of the same model, or their shapes. Raises UserError for tensors that are
    missing, unexpected or of another shape, for other positions and for embeddings that differ
    from block to block."""
    layout = layout_of(tensors)
    found, flat = places(like, model, layout), cast(dict, flatten_dict(like))
    zero = lambda path: np.broadcast_to(np.float32(0), flat[path].shape)  # without the memory
    shapes = {name: _to_torch(zero(p.path), p, model).shape for name, p in found.items()}
    fixed = positions(model, height, width)
    check_fit(tensors, shapes | ({POSITIONS: fixed.shape} if layout == "dit" else {}))
    if layout == "dit" and not np.allclose(tensors[POSITIONS], fixed, atol=1e-5):
        raise UserError(f"{POSITIONS} does not hold the sinusoids of {height} x {width} pixels")
    parts: dict[tuple[str, ...], dict[int, Any]] = {}
    for name, place in found.items():
        array = _to_flax(tensors[name], place)
        first = parts.setdefault(place.path, {}).setdefault(place.part, array)
        if not np.array_equal(first, array):
            raise UserError(f"{name} differs from that of the first block")
    whole = lambda arrays: np.concatenate([arrays[i] for i in sorted(arrays)], axis=-1)
    return unflatten_dict({p: np.ascontiguousarray(whole(a)) for p, a in parts.items()})


def layout_of(tensors: Tensors) -> Layout:
    """The layout of a state dict. Raises UserError for what is none of a DiT."""
    for layout, (names, _) in LAYOUTS.items():
        if f"{names['patch']}.weight" in tensors:
            return cast(Layout, layout)
    raise UserError(f"these are not the weights of a DiT: no {DIT['patch']}.weight")


def infer_model(tensors: Tensors) -> tuple[dict[str, Any], int, int]:
    """(settings of the factory `dit`, channels of the images, rows of the labels' table or 0), as
    far as a state dict's names and shapes tell.

    Heads cannot be read; of DiT's own sizes they are the paper's. Raises UserError for what is no
    DiT."""
    layout = layout_of(tensors)
    names, blocks = LAYOUTS[layout]
    kernel = tensors[f"{names['patch']}.weight"]
    out = tensors.get(f"{names['dense_out']}.weight")
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3] or out is None:
        raise UserError("these are not the weights of a DiT: its patches have no layers of squares")
    width, channels, patch, _ = kernel.shape
    if len(out) not in (patch**2 * channels, 2 * patch**2 * channels):
        raise UserError(
            f"{len(out)} outputs a patch for {channels} channels are neither the image's nor twice "
            "as many"
        )
    depth = len({m[1] for m in (re.match(rf"{blocks}\.(\d+)\.", n) for n in tensors) if m})
    sizes = [name for name, known in SIZES.items() if known[:2] == (width, depth)]
    size = {"size": sizes[0], "width": 0, "depth": 0} if sizes else {"width": width, "depth": depth}
    settings = PLAIN | size | {"patch": patch}
    settings["learned_variance"] = len(out) == 2 * math.prod(kernel.shape[1:])
    label = (f"{blocks}.0." if layout == "diffusers" else "") + str(names["label"])
    return settings, channels, len(tensors.get(f"{label}.weight", ()))
