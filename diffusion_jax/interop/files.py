"""Files of weights, {name: float32 array}: reading them, writing them, and their fingerprint."""

import hashlib
import operator
import os
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree

Tensors = dict[str, np.ndarray]


def _read_torch(path: pathlib.Path) -> Tensors:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f'{path} needs PyTorch to be read: pip install "diffusion_jax[torch]"'
        ) from None
    state = torch.load(path, weights_only=True, map_location="cpu")
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]  # of PyTorch Lightning
    named = lambda item: isinstance(item[0], str) and isinstance(item[1], torch.Tensor)
    if not isinstance(state, dict) or not all(map(named, state.items())):
        raise UserError(f"{path} holds no plain state dict, {{name: tensor}}")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}


def _read_npz(path: pathlib.Path) -> Tensors:
    with np.load(path) as file:
        return dict(file)


READERS = {
    ".safetensors": safetensors.numpy.load_file,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".ckpt": _read_torch,
    ".bin": _read_torch,
    ".npz": _read_npz,
}


def read_checkpoint(path: str | pathlib.Path) -> Tensors:
    """The state dict of a .safetensors or .npz file or one of PyTorch's, .pt, .pth, .ckpt or .bin,
    as float32. Raises UserError where it cannot be read.

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


def write_safetensors(path: pathlib.Path, tensors: Tensors) -> None:
    """Writes a .safetensors file whole or not at all.

    Raises UserError where it exists, has another ending or cannot be written."""
    check_writable(path)
    partial = path.with_name(path.name + ".partial")
    try:
        safetensors.numpy.save_file(tensors, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {' '.join(str(error).split())[:160]}") from None


def check_writable(path: pathlib.Path) -> None:
    """Raises UserError where a file of weights would be overwritten or has not their ending."""
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors")
    if path.exists():
        raise UserError(f"{path} exists; choose another name")


def check_fit(
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    alike: Callable[[tuple, tuple], bool] = operator.eq,
) -> None:
    """Raises UserError naming tensors that are missing, unexpected or of another shape.

    alike: whether a tensor's shape may stand for the one that is wanted."""
    misshaped = [
        f"{name} {list(tensors[name].shape)} for {list(shape)}"
        for name, shape in shapes.items()
        if name in tensors and not alike(tensors[name].shape, shape)
    ]
    missing = [name for name in shapes if name not in tensors]
    extra = [name for name in tensors if name not in shapes]
    faults = {"missing": missing, "unexpected": extra, "of another shape": misshaped}
    if missing or extra or misshaped:
        raise UserError(
            "the weights do not fit: "
            + "; ".join(f"{k}: {_few(v)}" for k, v in faults.items() if v)
        )


def _few(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def fingerprint(params: PyTree) -> str:
    """SHA-256 of parameters, in float32 and by name: recorded with what was computed from them."""
    digest = hashlib.sha256()
    for path, array in sorted(
        (jax.tree_util.keystr(path), a) for path, a in jax.tree_util.tree_leaves_with_path(params)
    ):
        digest.update(path.encode() + np.ascontiguousarray(array, "<f4").tobytes())
    return digest.hexdigest()
