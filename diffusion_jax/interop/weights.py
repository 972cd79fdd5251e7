"""The weights of others: state dicts of Improved DDPM and ADM to flax parameters and back, and
whole runs made of them.

The names are those of openai/improved-diffusion (Nichol & Dhariwal 2021) and
openai/guided-diffusion (ADM, Dhariwal & Nichol 2021). A state dict is {name: float32 array};
convolutions in it are [out, in, height, width], linear layers [out, in], the attention's two [out,
in, 1]."""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Container, Iterator
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError

from diffusion_jax.commands.sample import restore_params
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.core.types import PyTree
from diffusion_jax.models.unet import UNet
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config, Model, differences, load, to_json
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.state import init_state

Tensors = dict[str, np.ndarray]
Architecture = Model | UNet  # either tells the names and the layouts

# Within a block, torch's name of a layer -> ours. The numbers count the layers without parameters,
# too.
RES_BLOCK = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "embedding"}
RES_BLOCK |= {"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "skip"}
ATTENTION = {"norm": "norm", "qkv": "qkv", "proj_out": "out"}
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}


def blocks(model: Architecture, names: Container[str]) -> Iterator[tuple[str, str]]:
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


def torch_names(params: PyTree, model: Architecture) -> dict[str, tuple[str, ...]]:
    """{torch name: path in the flax parameters} of every parameter, in a state dict's order.

    Raises UserError for a U-Net with data.augment, whose additional layer the state dicts have no
    place for."""
    if "augmentation" in params:
        raise UserError(
            "a U-Net with data.augment above 0 has a layer that Improved DDPM's and ADM's weights lack"
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


def _heads(path: tuple[str, ...], size: int, model: Architecture) -> int | None:
    """Heads of a qkv parameter of `size` outputs whose rows the legacy order swaps; None for all
    others."""
    if path[-2] != "qkv":
        return None
    return size // 3 // model.head_channels if model.head_channels else model.heads


def _to_torch(a, path: tuple[str, ...], model: Architecture, new_attention_order: bool):
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


def _to_flax(a, path: tuple[str, ...], model: Architecture, new_attention_order: bool):
    """The inverse of _to_torch."""
    if "attention" in path[0] and path[-1] == "kernel":
        a = a[..., 0]
    heads = _heads(path, a.shape[0], model)
    if heads and not new_attention_order:
        a = _swap(a, heads, 3)
    if path[-1] == "kernel":
        a = a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T
    return np.ascontiguousarray(a)


def to_torch_names(
    params: PyTree, model: Architecture, new_attention_order: bool = False
) -> Tensors:
    """Parameters of `models.unet.UNet` -> a state dict, in the original's order. model: a
    config.Model, or the UNet."""
    flat = flatten_dict(jax.device_get(params))
    names = torch_names(params, model)
    # Contiguous, because safetensors writes a transposed view's bytes in the wrong order.
    return {
        n: np.ascontiguousarray(_to_torch(flat[p], p, model, new_attention_order))
        for n, p in names.items()
    }


def from_torch_names(
    tensors: Tensors, like: PyTree, model: Architecture, new_attention_order: bool = False
) -> PyTree:
    """A state dict -> parameters of `models.unet.UNet`, in NumPy.

    like: parameters of the same model, or their shapes; model: its config.Model, or the UNet. The
    attention's weights may be those of linear layers, Conv1d or Conv2d. Raises UserError naming
    tensors that are missing, unexpected or of another shape."""
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
    misshaped = [
        f"{name} {list(tensors[name].shape)} for {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and trimmed(tensors[name].shape) != trimmed(shape)
    ]
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes]
    faults = {"missing": missing, "unexpected": extra, "of another shape": misshaped}
    if missing or extra or misshaped:
        raise UserError(
            "the weights do not fit: "
            + "; ".join(f"{k}: {_few(v)}" for k, v in faults.items() if v)
        )
    convert = lambda name, path: _to_flax(
        tensors[name].reshape(shapes[name]), path, model, new_attention_order
    )
    return unflatten_dict({path: convert(name, path) for name, path in names.items()})


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def infer_model(tensors: Tensors, height: int, base: Model | None = None) -> tuple[Model, int, int]:
    """(model, channels of the images, number of classes or 0), as far as a state dict's names and
    shapes tell.

    heads, head_channels, dropout and dtype can't be read and are those of `base`; nor can the
    images' height, in pixels, that config.Model counts attention by. Raises UserError for what is
    no U-Net of Improved DDPM or ADM."""

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
            f"these weights have {len(inputs)} input and {len(outputs)} output blocks on {levels} levels; a U-Net whose "
            "resampling has weights has equally many, a multiple of its levels"
        )
    begins = [
        (levels - 1 - i) * of_level for i in range(levels)
    ]  # the first output block of level i
    widths = [shape(f"output_blocks.{n}.0.in_layers.2.weight")[0] for n in begins]
    if start != channels or any(width % channels for width in widths):
        raise UserError(
            f"levels of {widths} channels, begun with {start}, on an embedding of {channels} are not supported"
        )
    if out_channels not in (image_channels, 2 * image_channels):
        raise UserError(
            f"{out_channels} output channels for {image_channels} are neither the image's nor twice as many"
        )
    if height < 1 or height % 2 ** (levels - 1):
        raise UserError(
            f"images of height {height} cannot be halved {levels - 1} times, as these weights do"
        )

    attended = having(r"output_blocks\.(\d+)\.1\.qkv\.")
    model = dataclasses.replace(
        base or Model(),
        name="unet",
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
    return (
        model,
        image_channels,
        shape("label_emb.weight")[0] if "label_emb.weight" in tensors else 0,
    )


def _read_torch(path: pathlib.Path) -> Tensors:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f'{path} needs PyTorch to be read: pip install "diffusion_jax[torch]"'
        ) from None
    state = torch.load(path, weights_only=True, map_location="cpu")
    named = lambda item: isinstance(item[0], str) and isinstance(item[1], torch.Tensor)
    if not isinstance(state, dict) or not all(map(named, state.items())):
        raise UserError(f"{path} holds no plain state dict, {{name: tensor}}")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


READERS = {".safetensors": safetensors.numpy.load_file, ".pt": _read_torch, ".pth": _read_torch}


def read_checkpoint(path: str | pathlib.Path) -> Tensors:
    """The state dict of a .safetensors, .pt or .pth file, as float32. Raises UserError where it
    cannot be read.

    PyTorch files are read without running the code that a pickle may hold (`weights_only`).
    """
    path = pathlib.Path(path)
    if path.suffix not in READERS:
        raise UserError(f"{path} is no file of weights; known: {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        return {
            name: np.asarray(tensor, np.float32)
            for name, tensor in READERS[path.suffix](path).items()
        }
    except UserError:
        raise
    except Exception as error:  # pickle, zip, JSON and safetensors each have their own
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:160] or type(error).__name__}"
        ) from None


def import_weights(
    path: str | pathlib.Path,
    config: Config,
    workdir: pathlib.Path,
    new_attention_order: bool = False,
) -> Config:
    """Makes a run at step 0 of a file of weights, to sample from or to train on; returns its
    config.

    The architecture, the images' channels and the number of classes are read from the file; all
    else is `config`'s: model.heads or head_channels, the images' size, the schedule and its T, the
    prediction; with training.label_dropout above 0 the last label means "none". The parameters and
    their average are the file's, the optimizer is new. Raises UserError, and writes nothing, where
    they do not fit."""
    workdir = pathlib.Path(workdir)
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run already; choose another --workdir")
    if workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty; choose another --workdir")
    if len(config.data.shape) != 3:
        raise UserError(
            f"config.data.shape must be height, width and channels, not {config.data.shape}"
        )
    tensors = read_checkpoint(path)
    model, channels, num_classes = infer_model(tensors, config.data.shape[0], config.model)
    num_classes -= num_classes > 0 and config.training.label_dropout > 0
    data = dataclasses.replace(
        config.data, shape=(*config.data.shape[:2], channels), num_classes=num_classes
    )
    config = dataclasses.replace(config, model=model, data=data)
    parts = build(config)
    like = jax.eval_shape(parts.init_params, jax.random.key(0))
    params = jax.tree.map(jnp.asarray, from_torch_names(tensors, like, model, new_attention_order))

    make_folder(workdir)
    checkpoints = Checkpoints(workdir, config.training.keep_checkpoints)
    _, key = jax.random.split(jax.random.key(config.seed))  # as a new run's, in training/loop.py
    state = init_state(params, parts.optimizer, parts.timesteps.init())
    checkpoints.save(state, {"key": jax.random.key_data(key).tolist()}, wait=True)
    checkpoints.close()
    write_text(
        workdir / "config.json", to_json(config)
    )  # last: a folder with a config has its weights
    return config


def export_weights(
    workdir: pathlib.Path,
    path: str | pathlib.Path,
    config: Config | None = None,
    new_attention_order: bool = False,
) -> pathlib.Path:
    """Writes the newest checkpoint's parameters as .safetensors under the original's names; returns
    the file.

    config: the run's, with sampling.ema choosing between the averaged parameters and the raw ones;
    None reads the stored one. Raises UserError where the file exists or cannot be written."""
    workdir, path = pathlib.Path(workdir), pathlib.Path(path)
    stored = load(workdir / "config.json")
    config = config or stored
    changed = differences(stored, config)
    if changed:
        raise UserError(
            f"exporting takes only config.sampling.* settings, not {'; '.join(changed)}"
        )
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors")
    if path.exists():
        raise UserError(f"{path} exists; choose another name")
    params, _ = restore_params(config, build(config), workdir, config.sampling.ema)
    partial = path.with_name(path.name + ".partial")
    try:
        safetensors.numpy.save_file(
            to_torch_names(params, config.model, new_attention_order), partial
        )
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {' '.join(str(error).split())[:160]}") from None
    return path


def on_trust(workdir: pathlib.Path) -> str:
    """What no check of an imported run can tell: a wrong number of heads gives noise, not an
    error."""
    config = load(workdir / "config.json")
    model, diffusion = config.model, config.diffusion
    heads = (
        f"head_channels={model.head_channels}" if model.head_channels else f"heads={model.heads}"
    )
    taken = f"{heads}, time_scale={model.time_scale:g}, schedule={diffusion.schedule}, num_steps={diffusion.num_steps}"
    return f"imported to {workdir}; taken on trust: {taken}, prediction={diffusion.prediction}, shape={config.data.shape}"


def fingerprint(params: PyTree) -> str:
    """SHA-256 of parameters, in float32 and by name: recorded with what was computed from them."""
    digest = hashlib.sha256()
    for path, array in sorted(
        (jax.tree_util.keystr(path), a) for path, a in jax.tree_util.tree_leaves_with_path(params)
    ):
        digest.update(path.encode() + np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()
