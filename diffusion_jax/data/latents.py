"""The source `latents`: what `main.py encode` made of a data set, in files that are mapped.

A folder holds one folder a split, with an .npy file for each entry of the examples and
latents.json: `autoencoder`, the SHA-256 of its parameters; `shape` and `examples` of the images;
`mean` and `deviation` of the latents by channel; `data`, the settings of the images' source; and of
each file its size and SHA-256."""

import hashlib
import json
import pathlib
from typing import Annotated, Any

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.settings import FREE
from diffusion_jax.data.spec import Declared

INDEX = "latents.json"
VERSION = 1
MIRRORED = "mirrored"  # file of the mirrored images' moments, and their entry in an example


class Latents:
    """A source of moments, float [h, w, m] under the entry `image`, with the images' own labels and
    captions. `stands_for`: the shape of the images. `mirrored(i)`: the moments of image i mirrored,
    which are not the moments mirrored."""

    range = None

    def __init__(self, folder: pathlib.Path, index: dict[str, Any]):
        self.folder, self.index = folder, index
        self.arrays = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in index["entries"]
        }
        self.stands_for = tuple(index["shape"])
        self.autoencoder: str = index["autoencoder"]
        self.statistics = tuple(index["mean"]), tuple(index["deviation"])
        self.num_classes: int = index["num_classes"]
        self.class_names: list[str] = index["class_names"]
        self.notes: list[str] = index["notes"]
        self.labels = self.arrays.get("label")
        self.texts = self.arrays.get("text")
        self.has_mirrored = (folder / f"{MIRRORED}.npy").is_file()
        if self.has_mirrored:
            self.others = np.load(folder / f"{MIRRORED}.npy", mmap_mode="r")
        self.fingerprint = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()

    def __len__(self):
        return self.index["examples"]

    def __getitem__(self, i):
        return {name: np.asarray(array[i]) for name, array in self.arrays.items()}

    def mirrored(self, i) -> np.ndarray:
        """The moments of image i mirrored. UserError where the folder has none."""
        if not self.has_mirrored:
            raise UserError(
                f"{self.folder} has no latents of mirrored images, which config.data.flip asks "
                "for; encode it again with config.data.flip=true"
            )
        return np.asarray(self.others[i])


def latents(
    split: str,
    declared: Declared,
    folder: Annotated[str, FREE] = "",
    verify: Annotated[bool, FREE] = False,
) -> Latents:
    """Latents that `main.py encode` made of a data set, and all that its examples had besides.

    config.data.shape is that of the images.

    Args:
      folder: that which `main.py encode` wrote.
      verify: compare the files with their checksums before they are used; their sizes always are.
    """
    if not folder:
        raise UserError(
            "config.data.source.folder is empty; it is the folder that main.py encode wrote"
        )
    path = pathlib.Path(folder).expanduser()
    index = read_index(path, split)
    if tuple(index["shape"]) != tuple(declared.shape):
        raise UserError(
            f"{path} holds latents of images of {tuple(index['shape'])}, but config.data.shape is "
            f"{tuple(declared.shape)}"
        )
    check_files(path / split, index["files"], verify)
    return Latents(path / split, index)


def read_index(folder: pathlib.Path, split: str) -> dict[str, Any]:
    """What latents.json of a split says; UserError where there is none."""
    path = folder / split / INDEX
    if not path.is_file():
        there = sorted(one.parent.name for one in folder.glob(f"*/{INDEX}"))
        raise UserError(
            f"{folder} has no latents of the split {split!r}, "
            + (f"only {', '.join(there)}" if there else "nor of another; main.py encode makes them")
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["version"] != VERSION:
            raise UserError(f"{path} is of another version, {index['version']}; encode it again")
        return index
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def check_files(folder: pathlib.Path, files: dict[str, Any], verify: bool) -> None:
    """Raises UserError where a file has another size than is written down or, with verify, another
    checksum."""
    for name, (size, digest) in files.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}"
            raise UserError(f"{path} {what}; encode the data again")
        if verify:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise UserError(f"{path} has another checksum than when it was written; "
                                    "encode the data again")  # fmt: skip


class Writer:
    """Rows of one .npy file, written one block after the other; its size and SHA-256 at the end."""

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype):
        self.file, self.digest, self.dtype = path.open("wb"), hashlib.sha256(), dtype
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(self.file, header)
        self.file.flush()
        self.digest.update(path.read_bytes())

    def write(self, block: np.ndarray) -> None:
        data = np.ascontiguousarray(block, self.dtype).tobytes()
        self.file.write(data)
        self.digest.update(data)

    def close(self) -> tuple[int, str]:
        size = self.file.tell()
        self.file.close()
        return size, self.digest.hexdigest()
