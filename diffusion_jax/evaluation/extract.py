"""Rows of a fixed length in a file, and the features of any number of images in such a file: what
is stopped goes on."""

import hashlib
import json
import os
import pathlib
import tempfile
import weakref
from collections.abc import Callable

import numpy as np
import tqdm

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.devices.parallel import equal_batches
from diffusion_jax.devices.processes import agreed, primary
from diffusion_jax.evaluation.features import KINDS, Features

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Rows:
    """Arrays of one shape and type, one after the other in a file. A last one that was written in
    part is dropped."""

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype: str):
        self.path, self.shape, self.dtype = path, tuple(shape), np.dtype(dtype)
        self.bytes = int(np.prod(self.shape)) * self.dtype.itemsize
        path.touch()
        self.keep(len(self))

    def __len__(self):
        return self.path.stat().st_size // self.bytes

    def keep(self, count: int) -> None:
        """The first `count`, at most."""
        with self.path.open("r+b") as file:
            file.truncate(min(count, len(self)) * self.bytes)

    def append(self, block: np.ndarray) -> None:
        with self.path.open("ab") as file:
            file.write(np.ascontiguousarray(block, self.dtype).tobytes())

    def array(self, count: int) -> np.ndarray:
        """The first `count` of them, memory-mapped."""
        return np.memmap(self.path, self.dtype, "r", shape=(count, *self.shape))


class Extracted:
    """The features of images 0, 1, 2 ... of one set in a folder, and the first `pictured` images
    themselves.

    All processes of a run make them together; those but the first keep what they have made in a
    folder of their own, for now. One program at a time has the folder, as long as the object lives:
    others wait, and then go on from what is there."""

    def __init__(
        self, folder: pathlib.Path, record: dict, image_shape: tuple[int, ...], pictured: int = 0
    ):
        """record: what the features are of; kept in the folder, for people."""
        self.scratch = (
            None if primary() else tempfile.TemporaryDirectory()
        )  # process 0 keeps what all have made
        folder = pathlib.Path(self.scratch.name) if self.scratch else make_folder(folder)
        self.folder, self.pictured, self.layout_file = folder, pictured, folder / "layout.json"
        hold(self, folder / ".lock")
        write_text(folder / "record.json", json.dumps(record, indent=2) + "\n")
        self.images = Rows(folder / "images.u1", image_shape, "u1")
        self.layout: dict[str, int] = (
            json.loads(self.layout_file.read_text()) if self.layout_file.is_file() else {}
        )

    @property
    def rows(self) -> Rows:
        return Rows(self.folder / "features.f4", (sum(self.layout.values()),), "<f4")

    def __len__(self):
        return len(self.rows) if self.layout else 0

    def append(self, images: np.ndarray, found: dict[str, np.ndarray]) -> None:
        """Of the next images, uint8 [b, H, W, C]."""
        for name, array in found.items():
            if not np.isfinite(array).all():
                raise UserError(
                    f"the {name} of images {len(self)} to {len(self) + len(images) - 1} are not "
                    "finite"
                )
        if not self.layout:
            self.layout = {name: found[name].shape[1] for name in KINDS if name in found}
            self.rows.keep(0)  # rows of no known layout
            write_text(self.layout_file, json.dumps(self.layout))
        if len(self.images) < self.pictured:
            self.images.append(images[: self.pictured - len(self.images)])
        self.rows.append(np.concatenate([found[name] for name in self.layout], axis=1))

    def remove(self) -> None:
        """Deletes the rows, not what was computed of them."""
        for path in (self.images.path, self.rows.path, self.layout_file):
            path.unlink(missing_ok=True)

    def get(self, kind: str, count: int) -> np.ndarray | None:
        """[count, D] of that kind, memory-mapped; None where there are none."""
        if kind not in self.layout:
            return None
        start = sum(
            width for name, width in self.layout.items() if KINDS.index(name) < KINDS.index(kind)
        )
        return self.rows.array(count)[:, start : start + self.layout[kind]]


def hold(owner: object, path: pathlib.Path) -> None:
    """Locks the file against other processes until `owner` is gone; waits, and says so, while
    another process has it."""
    if fcntl is None:
        return
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    weakref.finalize(owner, os.close, lock)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        print(f"waiting for another process, which is at work in {path.parent}", flush=True)
        fcntl.lockf(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return


def extract(
    extracted: Extracted,
    features: Features,
    images_of: Callable,
    count: int,
    batch_size: int,
    description: str,
) -> Extracted:
    """Makes the features of the first `count` images; those that are there already are not made
    again.

    images_of: numbers [b] -> uint8 [b, H, W, C]. Memory is that of a batch.
    """
    done, pictured = agreed(len(extracted)), agreed(len(extracted.images))
    if pictured < min(
        done, extracted.pictured
    ):  # fewer were wanted before: the missing are made again
        for index, kept in equal_batches(min(done, extracted.pictured) - pictured, batch_size):
            extracted.images.append(images_of(pictured + index)[:kept])
    extracted.images.keep(done)  # one batch may have its images and no features
    with tqdm.tqdm(
        total=count, initial=min(done, count), unit="image", desc=description, disable=done >= count
    ) as bar:
        for index, kept in equal_batches(max(count - done, 0), min(batch_size, count)):
            images = images_of(done + index)
            found = features.apply(images)
            extracted.append(images[:kept], {name: array[:kept] for name, array in found.items()})
            bar.update(kept)
    return extracted


def key(record: dict) -> str:
    """Eight hexadecimal digits that stand for a record of plain values."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
