"""Snapshots of a run's power-function averages, and averages of other lengths made of them.

averages/00001000-0.05.safetensors is the average of length 0.05 after 1,000 steps."""

import pathlib

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder
from diffusion_jax.core.types import PyTree
from diffusion_jax.interop.files import read_checkpoint, write_safetensors
from diffusion_jax.training.power_ema import coefficients, exponent


def write(
    folder: pathlib.Path, step: int, averages: tuple, lengths: tuple[float, ...], dtype: str
) -> None:
    """Writes the averages of those lengths after a step, a file each, whole or not at all."""
    make_folder(folder)
    for average, length in zip(averages, lengths, strict=True):
        flat = flatten_dict(average, sep="/")
        tensors = {name: np.asarray(a, dtype, order="C") for name, a in flat.items()}
        path = folder / f"{step:08d}-{length:g}.safetensors"
        path.unlink(missing_ok=True)  # of a run that was ended before the checkpoint of this step
        write_safetensors(path, tensors)


def reconstruct(folder: pathlib.Path, length: float, until: int) -> tuple[PyTree, int]:
    """(the parameters' average of a length, float32, the step that it is of): the last one, up to
    `until`, of which there is a snapshot.

    Raises UserError where there is none and for a length that no average has."""
    found = {}
    for path in sorted(folder.glob("*-*.safetensors")):
        step, _, of = path.stem.partition("-")
        if int(step) <= until:
            found[path] = (int(step), exponent(float(of)))
    if not found:
        raise UserError(
            f"{folder} holds no averages up to step {until}, of which one of another length could "
            "be made: train with config.training.post_hoc_ema=0.05,0.1"
        )
    steps, exponents = zip(*found.values(), strict=True)
    try:
        factors = coefficients(steps, exponents, max(steps), exponent(length))
    except ValueError as error:
        raise UserError(f"config.sampling.ema_length: {error}") from None
    total: dict[str, np.ndarray] = {}
    for path, factor in zip(found, factors, strict=True):
        for name, a in read_checkpoint(path).items():
            total[name] = total.get(name, 0.0) + factor * a.astype(np.float64)
    params = {name: a.astype(np.float32) for name, a in total.items()}
    return unflatten_dict(params, sep="/"), max(steps)
