"""The source `arrays`: images, labels and whatever else an example has, from a NumPy file."""

import math
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.settings import FREE
from diffusion_jax.data import texts

IMAGES, LABELS = ("images", "image", "arr_0"), ("labels", "label", "arr_1")
CAPTIONS = ("text", "texts", "caption", "captions")  # arrays of strings
HELD_OUT = 20  # every so many examples are the split "test"
CHUNK = 2**24  # values looked at together


class Arrays:
    """A source of arrays with one row an example, in memory or in a mapped file.

    images: [N, H, W, C], uint8, or floats with `range`, which become float32; None where there are
    none. labels: int [N] or None; where there are images but no labels, every label is 0. chosen:
    the numbers of the source's own examples. others: name -> [N, ...]. texts: uint8 [N, 256], of
    all of them, are the entry "text". range: the least and the largest value of float images.
    """

    images: Any  # an array, or None

    def __init__(
        self,
        images: np.ndarray | None,
        labels: np.ndarray | None = None,
        chosen: np.ndarray | None = None,
        fingerprint: str = "",
        others: Mapping[str, np.ndarray] | None = None,
        range: tuple[float, float] | None = None,
        notes: list[str] | None = None,
        texts: np.ndarray | None = None,
    ):
        self.images, self.others = images, dict(others or {})
        self.others |= {} if texts is None else {"text": texts}
        self.fingerprint, self.range, self.notes = fingerprint, range, list(notes or [])
        rows = len(next(a for a in (images, labels, *self.others.values()) if a is not None))
        self.chosen = np.arange(rows) if chosen is None else chosen
        self.texts = None if texts is None else texts[self.chosen]
        self.num_classes = 0 if labels is None else int(labels.max(initial=0)) + 1
        self.labels = None
        if labels is not None:
            self.labels = labels[self.chosen].astype(np.int32)
        elif images is not None:
            self.labels = np.zeros(len(self.chosen), np.int32)

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, i):
        row, example = self.chosen[i], {}
        if self.images is not None:
            image = np.asarray(self.images[row])
            example["image"] = image if image.dtype == np.uint8 else image.astype(np.float32)
        if self.labels is not None:
            example["label"] = self.labels[i]
        return example | {name: array[row] for name, array in self.others.items()}


def arrays(split: str, folder: Annotated[str, FREE] = "", range: tuple[float, ...] = ()) -> Arrays:
    """The arrays of a NumPy file: an .npz with `images`, `labels` and others, each perhaps, or an
    .npy of images, which is mapped.

    The images are [N, H, W, C] or [N, H, W], of config.data.shape already: uint8, or floats, which
    stay in their own units. The labels are whole numbers from 0. Every other array of as many rows
    is yielded under its own name: floats as float32, whole numbers as int32, uint8 and bool as they
    are. Strings named `text` or `captions` are the entry "text". Images without a name are the
    first array, as ADM writes it: arr_0, and arr_1 the labels.
    Every twentieth example is "test", the others are "train"; "all" is all of it.

    Args:
      folder: the file.
      range: of float images, least and largest value, which the diffusion sees as -1 and 1; empty
        takes them from all the images of the file.
    """
    low_high = checked_range(range)
    path = pathlib.Path(folder).expanduser()
    found, left_out = read(path, folder)
    image, label = named(found)
    images = found.pop(image) if image else None
    labels = found.pop(label) if label else None
    if images is not None:
        images = checked_images(images, path)
        count = len(images)
    else:
        first = labels if labels is not None else next(iter(found.values()))
        count = len(first) if first.ndim else 0
    if labels is not None:
        labels = checked_labels(labels, count, path)
    others, captions, cut = {}, None, []
    for name, array in found.items():
        if name in CAPTIONS and array.dtype.kind == "U" and array.shape == (count,):
            captions, cut = texts.encode(array.tolist()), texts.cut(array.tolist())
        elif array.ndim and len(array) == count and array.dtype.kind in "biuf":
            others[name] = checked_other(name, array, path)
        else:
            left_out[name] = f"{array.dtype} {array.shape}"
    if images is None and labels is None and captions is None and not others:
        raise UserError(f"{path} holds no array of numbers with a row for each example")
    own_range = image_range(images, low_high, path)
    held_out = np.arange(count) % HELD_OUT == 0
    parts = {"all": np.ones_like(held_out), "train": ~held_out, "test": held_out}
    if split not in parts:
        raise UserError(f"{path} has the splits {', '.join(parts)}, not {split!r}")
    listed = ", ".join(f"{name} ({what})" for name, what in left_out.items())
    notes = [f"left out, since they are not numbers of {count} examples: {listed}"]
    notes = cut + (notes if left_out else [])
    stat = path.stat()
    return Arrays(
        images,
        labels,
        np.flatnonzero(parts[split]),
        f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}",
        others,
        own_range,
        notes,
        captions,
    )


def read(path: pathlib.Path, called: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(name -> array of the file, name -> why it is none)."""
    found, left_out, cause = {}, {}, "it is empty"
    try:
        opened = np.load(path, mmap_mode="r")
        if isinstance(opened, np.ndarray):
            return {"images": opened}, {}
        with opened:
            for name in opened.files:
                try:
                    found[name] = opened[name]
                except ValueError as error:  # of objects, which only pickle reads
                    cause = f"it must be .npz or .npy ({error})"
                    left_out[name] = "objects"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        cause = (
            isinstance(error, OSError) and error.strerror
        ) or f"it must be .npz or .npy ({error})"
        found = {}
    if not found or left_out.keys() & set(IMAGES[:2]):
        raise UserError(f"config.data.source.folder={called} holds no arrays: {cause}")
    return found, left_out


def named(found: Mapping[str, np.ndarray]) -> tuple[str | None, str | None]:
    """The names of the images and of the labels. Where no array is named as images, they are the
    first one that is no labels, if it is bytes of the shape of images."""
    image = next((name for name in IMAGES if name in found), None)
    if image is None:
        first = next((name for name in found if name not in LABELS), None)
        if first and found[first].dtype == np.uint8 and found[first].ndim in (3, 4):
            image = first
    return image, next((name for name in LABELS if name in found and name != image), None)


def checked_images(images: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """[N, H, W, C]."""
    if images.ndim not in (3, 4) or (images.dtype != np.uint8 and images.dtype.kind != "f"):
        raise UserError(
            f"the images of {path} must be uint8 or floats, [N, H, W, C] or [N, H, W], "
            f"not {images.dtype} {images.shape}"
        )
    return images if images.ndim == 4 else images[..., None]


def checked_labels(labels: np.ndarray, count: int, path: pathlib.Path) -> np.ndarray:
    """[N]."""
    found = labels.reshape(len(labels), -1)[:, 0] if labels.size == count and count else labels
    if found.shape != (count,) or found.dtype.kind not in "iu" or found.min(initial=0) < 0:
        raise UserError(
            f"the labels of {path} must be {count} whole numbers from 0, "
            f"not {found.dtype} {found.shape}"
        )
    return found


def checked_other(name: str, array: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """An array under its own name, as float32, int32, uint8 or bool."""
    if array.dtype.kind == "f":
        extremes(array, f"{name!r} in {path}")  # all are finite
        return array.astype(np.float32)
    if array.dtype in (np.uint8, bool):
        return array
    bounds = np.iinfo(np.int32)
    if array.size and not bounds.min <= array.min() <= array.max() <= bounds.max:
        raise UserError(f"{name!r} in {path} has whole numbers beyond 32 bits")
    return array.astype(np.int32)


def checked_range(given: tuple[float, ...]) -> tuple[float, float] | None:
    if not given:
        return None
    if len(given) != 2 or not all(map(math.isfinite, given)) or not given[0] < given[1]:
        shown = ",".join(f"{value:g}" for value in given)
        raise ValueError(f"range must be two numbers, the lesser first, not {shown}")
    return float(given[0]), float(given[1])


def image_range(
    images: np.ndarray | None, given: tuple[float, float] | None, path: pathlib.Path
) -> tuple[float, float] | None:
    """The range of float images, given or their own; None of others. UserError where values lie
    outside of it or are not finite."""
    if images is None or images.dtype == np.uint8:
        if given:
            what = "no images" if images is None else "images of uint8"
            raise UserError(f"config.data.source.range is of float images, but {path} has {what}")
        return None
    if not images.size:
        return given
    low, high = extremes(images, f"the images of {path}")
    if given is None:
        if low == high:
            raise UserError(
                f"all values of the images of {path} are {low:g}, which is no range; "
                "config.data.source.range=LOW,HIGH gives one"
            )
        return low, high
    bounds = np.float32(given[0]), np.float32(given[1])
    if low < bounds[0] or high > bounds[1]:
        own = ",".join(str(np.float32(end)) for end in (low, high))  # so that these hold all values
        outside = sum(int(((c < bounds[0]) | (c > bounds[1])).sum()) for c in chunks(images))
        raise UserError(
            f"{outside:,} of {images.size:,} values of the images of {path} lie outside of "
            f"config.data.source.range={given[0]:g},{given[1]:g}: theirs is {own}"
        )
    return given


def extremes(array: np.ndarray, called: str) -> tuple[float, float]:
    """(least, largest) of an array's values as float32; UserError where some are not finite."""
    low, high, wrong = math.inf, -math.inf, 0
    for chunk in chunks(array):
        finite = np.isfinite(chunk)
        wrong += chunk.size - int(finite.sum())
        low = min(low, float(chunk.min(initial=math.inf, where=finite)))
        high = max(high, float(chunk.max(initial=-math.inf, where=finite)))
    if wrong:
        raise UserError(f"{wrong:,} of {array.size:,} values of {called} are not finite")
    return low, high


def chunks(array: np.ndarray):
    """The rows of an array as float32, some at a time."""
    rows = max(1, CHUNK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), rows):
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, hence refused
            yield array[start : start + rows].astype(np.float32)
