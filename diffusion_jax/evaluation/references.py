"""Sets of images that others are compared with: a split of the run's data, a folder, a file; their
statistics are kept.

What was computed of a set lies in the cache's features/<set, features, hash of both>."""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core.caches import cache_folder
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import pipeline
from diffusion_jax.data.arrays import arrays
from diffusion_jax.data.folder import folder
from diffusion_jax.data.spec import Declared
from diffusion_jax.devices.processes import agreed, primary
from diffusion_jax.evaluation import frechet
from diffusion_jax.evaluation.extract import Extracted, extract, key
from diffusion_jax.evaluation.features import Features
from diffusion_jax.evaluation.frechet import Statistics

PROBED = 1000  # images at most whose pixels are part of a set's fingerprint
ROWS = 10_000  # of features, drawn at random, that are kept of a reference


class RunData(NamedTuple):
    """The data of a run, whose splits can be named, and how its folders are read.

    shape: of its images, to which those of a folder are brought; empty where no run is meant.
    called: their name. load: split -> source. resize: how a folder's images get the shape, None
    where the data are no folder's. unreadable: what happens to files that cannot be read.
    """

    shape: tuple[int, ...]
    called: str
    load: Callable[[str], Any]
    resize: str | None = None
    unreadable: str = "fail"


class ImageSet(NamedTuple):
    """source: as in `data.sources`. record: plain values that tell the set from any other."""

    source: Any
    record: dict

    def images(self, index: np.ndarray) -> np.ndarray:
        """uint8 [b, H, W, C]"""
        return pipeline.examples(self.source, index)["image"]


class Reference(NamedTuple):
    """statistics and spatial: of all its images. rows: features [n, D] of ROWS of them at most.
    None where there are none."""

    statistics: Statistics
    spatial: Statistics | None
    rows: np.ndarray | None


def check_width(width: int, reference: Reference) -> None:
    """Raises UserError where features of that width cannot be compared with the reference's."""
    if width != len(reference.statistics.mean):
        raise UserError(
            f"the reference has {len(reference.statistics.mean)} features an image, the samples "
            f"have {width}"
        )


def image_set(name: str, data: RunData) -> ImageSet:
    """The images of a folder, of an .npz or .npy, or of a split of `data`, whichever `name` is.

    A folder's images get data.shape, and where that is empty they stay as they are, all of one
    size. UserError."""
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        shape, resize = tuple(data.shape), data.resize or "center_crop"
        if not shape:
            shape, resize = own_shape(path, data.unreadable), "none"
        source = of_folder(path, shape, resize, data.unreadable)
        record = {"images": path.resolve().name, "split": "all", "shape": list(shape)}
        record |= {"resize": resize}
    elif path.is_file():
        source = arrays("all", str(path))
        if source.images is None:
            raise UserError(f"{path} holds no images")
        if len(source) == 0:
            raise UserError(f"{path} holds no images: its array is empty")
        if source.images.dtype != np.uint8:
            raise UserError(
                f"{path} holds images of {source.images.dtype}; they are compared as 8-bit ones"
            )
        record = {"images": path.name, "split": "all", "shape": list(source[0]["image"].shape)}
    elif not data.shape or "/" in name or path.suffix:
        splits = ", nor a split of the run's data" if data.shape else ""
        raise UserError(f"{name} is no folder and no .npz or .npy file of images{splits}")
    else:
        source = data.load(name)
        record = {"images": data.called, "split": name, "shape": list(data.shape)}
        record |= {"resize": data.resize} if data.resize else {}
    return ImageSet(source, record | {"count": len(source), "fingerprint": fingerprint(source)})


def of_folder(path: pathlib.Path, shape: tuple[int, ...], resize: Any, unreadable: Any):
    """All images of a folder, without labels."""
    declared = Declared(shape, 0)
    return folder("all", declared, str(path), labels="none", resize=resize, unreadable=unreadable)


def own_shape(path: pathlib.Path, unreadable: str) -> tuple[int, int, int]:
    """The one size of a folder's images, in colour; UserError where there are several."""
    sizes = np.unique(of_folder(path, (1, 1, 3), "center_crop", unreadable).sizes, axis=0)
    if len(sizes) > 1:
        raise UserError(
            f"the images in {path} have {len(sizes)} sizes, from {sizes[0, 0]} x {sizes[0, 1]} to "
            f"{sizes[-1, 0]} x {sizes[-1, 1]}; --config.data.shape=64,64,3 says to which they are "
            "to be cropped and shrunk"
        )
    return (*map(int, sizes[0]), 3)  # pyright: ignore


def fingerprint(source) -> str:
    """A hash of what a source says of itself and of PROBED of its images, evenly spread."""
    found = hashlib.sha256(getattr(source, "fingerprint", "").encode())
    for i in np.unique(np.linspace(0, len(source) - 1, PROBED).astype(int)):
        found.update(np.ascontiguousarray(source[int(i)]["image"]).tobytes())
    return found.hexdigest()[:32]


def place(images: ImageSet, features: Features) -> pathlib.Path:
    """The folder of what is computed of the set."""
    record = images.record | features.record
    called = f"{record['images']}-{record['split']}-{record['count']}-{features.name}-{key(record)}"
    return cache_folder("features") / re.sub(r"[^\w.-]+", "_", called)


def extracted(images: ImageSet, features: Features) -> Extracted:
    """The set's features, in their place."""
    return Extracted(
        place(images, features), images.record | features.record, images.source[0]["image"].shape
    )


def reference(
    name: str, data: RunData, features: Features, batch_size: int, say: Callable = print
) -> Reference:
    """The reference of that name: an image set's, computed once, or a file of statistics (ours, or
    `mu` and `sigma`).

    Of several processes, which compute it together, the first has it.
    """
    path = pathlib.Path(name).expanduser()
    if path.suffix == ".npz" and path.is_file() and holds_statistics(path):
        found = read(path)
        frechet.check_same(found.statistics.record, features.record)
        return found
    images = image_set(name, data)
    file = place(images, features) / "statistics.npz"
    if not agreed(file.is_file()):
        made = extracted(images, features)
        if not agreed(file.is_file()):  # another program may just have written it
            compute(images, made, features, batch_size, file, f"{features.name} of {name}")
            if primary():
                say(f"reference: {file}")
    return (
        read(file)
        if primary()
        else Reference(Statistics(np.zeros(0), np.zeros((0, 0)), 0), None, None)
    )


def compute(
    images: ImageSet,
    made: Extracted,
    features: Features,
    batch_size: int,
    file: pathlib.Path,
    description: str,
) -> None:
    """Writes the statistics of the set, last, and what `read` finds beside them; the features
    themselves are deleted."""
    count = len(images.source)
    extract(made, features, images.images, count, batch_size, description)
    if not primary():
        return
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:ROWS])
    for kind, target in (("spatial", file.with_name("spatial.npz")), ("features", file)):
        rows = made.get(kind, count)
        if rows is None:
            continue
        if kind == "features":
            np.save(file.with_name("rows.npy"), rows[chosen])
        frechet.save(target, frechet.of_rows(rows, images.record | features.record))
    made.remove()


def holds_statistics(path: pathlib.Path) -> bool:
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return {"mu", "sigma"} <= set(file.files) or {"mean", "covariance"} <= set(file.files)
    except Exception:  # a damaged file has many ways to fail; whoever reads its images says which
        return False


def read(path: pathlib.Path) -> Reference:
    """A file of statistics, with what lies beside one that was made here. One without a record is
    known by its bytes."""
    spatial, rows = path.with_name("spatial.npz"), path.with_name("rows.npy")
    own, statistics = path.name == "statistics.npz", frechet.load(path)
    if not statistics.record:
        record = {
            "statistics": path.name,
            "fingerprint": hashlib.sha256(path.read_bytes()).hexdigest()[:32],
        }
        statistics = dataclasses.replace(statistics, record=record)
    return Reference(
        statistics,
        frechet.load(spatial) if own and spatial.is_file() else None,
        np.load(rows) if own and rows.is_file() else None,
    )
