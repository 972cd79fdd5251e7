"""Encodes a data set with a run's autoencoder, once, for training on its latents.

python main.py encode --config experiments/NAME.py --folder FOLDER
"""

import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import tqdm

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, reason, write_text
from diffusion_jax.data import pipeline
from diffusion_jax.data.latents import INDEX, MIRRORED, VERSION, Writer, read_index
from diffusion_jax.data.spec import spec_of
from diffusion_jax.devices.parallel import equal_batches
from diffusion_jax.devices.processes import process, start
from diffusion_jax.runs.autoencoders import AUTOENCODERS
from diffusion_jax.runs.build import data_nouns, raw_source
from diffusion_jax.runs.checks import check_together
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.latents import CODEC, Moments, make_encode, of_latents
from diffusion_jax.runs.registry import make
from diffusion_jax.runs.settings import as_values, check

FLAGS = {
    "folder": Flag("", "where the latents are written", "the folder that the latents are put in"),
    "dtype": Flag("float16", "of what is kept: float16 or float32"),
    "batch": Flag(64, "images that are encoded together"),
}
NEEDS = Needs(workdir=False, config=True)


def run(given: Given) -> str:
    """What `main.py encode` does with its flags."""
    flags = given.flags
    folder = pathlib.Path(flags["folder"]).expanduser()
    return encode(given.config, folder, flags["dtype"], flags["batch"])


def encode(config: Config, folder: pathlib.Path, dtype: str = "float16", batch: int = 64) -> str:
    """Writes the latents of both splits' images, raw means and logarithms of variances, with all
    that the examples have besides, to folder/SPLIT, which the source `latents` reads; returns what
    to do next.

    With data.flip those of the mirrored images are written, too. Memory is that of a batch. A split
    appears when it is complete; one that is there, of the same autoencoder and settings, is left
    as it is. Raises UserError where it is another's, and then nothing is written."""
    start()
    check(config)
    check_together(config)
    if config.codec.entry != CODEC or of_latents(config):
        raise UserError(f"encode takes a config of images with config.codec={CODEC}")
    if dtype not in ("float16", "float32") or batch < 1:
        raise UserError("--dtype is float16 or float32, and --batch at least 1")
    if process()[1] > 1:
        raise UserError("encode runs in one process, on all devices of its machine")
    data, own = config.data, config.codec
    sha256 = AUTOENCODERS.open(own.run, own.weights).sha256
    kept = record(config, sha256, dtype)
    for split in dict.fromkeys((data.train_split, data.eval_split)):
        if (folder / split / INDEX).is_file():
            there = read_index(folder, split)
            if differing := [name for name in kept if there.get(name) != kept[name]]:
                raise UserError(
                    f"{folder / split} holds other latents, which differ in {differing[0]}; choose "
                    "another --folder"
                )
            print(f"{folder / split} is there already")
        else:
            write_split(config, folder, split, kept, np.dtype(dtype), batch)
    return (
        f"latents: {folder}; to train on them: --config.data.source=latents "
        f"--config.data.source.folder={folder}"
    )


def record(config: Config, sha256: str, dtype: str) -> dict[str, Any]:
    """What two folders of the same latents have in common."""
    data = config.data
    return {
        "version": VERSION,
        "autoencoder": sha256,
        "shape": list(data.shape),
        "dtype": dtype,
        "flip": data.flip,
        "data": json.loads(json.dumps(as_values(data.source))),
    }


def write_split(
    config: Config, folder: pathlib.Path, split: str, kept: dict, dtype: np.dtype, batch: int
) -> None:
    """One split, in a folder that gets its name when it is complete."""
    codec, source = make(config.codec, data_nouns(config)), raw_source(config, split)
    encoder, sums, count = make_encode(codec), Moments(codec.shape[-1]), len(source)
    spec = spec_of(source)
    if spec["image"][1] != np.uint8:
        raise UserError(f"encode takes 8-bit images, not {spec['image'][1]}")
    spec["image"] = (codec.kept, dtype)
    stored = spec | ({MIRRORED: spec["image"]} if config.data.flip else {})
    partial = None
    try:
        partial = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=make_folder(folder)))
        writers = {
            name: Writer(partial / f"{name}.npy", (count, *shape), kind)
            for name, (shape, kind) in stored.items()
        }
        with tqdm.tqdm(total=count, unit="image", desc=split, disable=None) as bar:
            for index, new in equal_batches(count, min(batch, count)):
                examples = pipeline.examples(source, index)
                images = examples["image"]
                examples["image"] = encoder(images)
                sums.add(examples["image"][:new])
                if MIRRORED in writers:
                    examples[MIRRORED] = encoder(images[:, :, ::-1])
                for name, writer in writers.items():
                    writer.write(finite(examples[name][:new], writer.dtype))
                bar.update(new)
        files = {f"{name}.npy": writer.close() for name, writer in writers.items()}
        mean, deviation = sums.statistics()
        found = {
            "examples": count,
            "entries": list(spec),
            "num_classes": source.num_classes,
            "class_names": list(getattr(source, "class_names", [])),
            "notes": list(getattr(source, "notes", [])),
            "mean": mean,
            "deviation": deviation,
            "files": files,
        }
        write_text(partial / INDEX, json.dumps(kept | found, indent=1) + "\n")
        partial.chmod(0o755)  # mkdtemp's are private
        os.rename(partial, folder / split)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {reason(error)}") from None
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def finite(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in that type; UserError where it holds what is not finite there."""
    with np.errstate(over="ignore"):
        array = np.asarray(array, dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"the latents are not finite as {dtype}; --dtype float32 may hold them")
    return array
