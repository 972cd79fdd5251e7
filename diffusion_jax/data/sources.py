"""Data sources: anything with `__len__` and `__getitem__`, whose examples are {"image": uint8 [H,
W, C], "label": int}.

`num_classes` is the number of labels that occur, 0 where there are none. A source that knows more
of itself says so: its `labels` [N], `class_names`, `sizes` [N, 2], `splits` (name -> examples),
`faults` (file -> why it is left out), `notes` and a `fingerprint`, text that is another where the
images are others.

A factory is called with the split and with those settings of config.data that it names among its
parameters."""

import inspect
import logging
import os
import pathlib
import zipfile
from typing import Any

import numpy as np

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.data.folder import folder


class Arrays:
    """A source of images uint8 [N, H, W, C] and labels [N] in memory or in a mapped file; chosen:
    the numbers of its own."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        chosen: np.ndarray | None = None,
        fingerprint: str = "",
    ):
        self.fingerprint = fingerprint
        self.images, self.chosen = images, np.arange(len(images)) if chosen is None else chosen
        self.num_classes = 0 if labels is None else int(labels.max(initial=0)) + 1
        self.labels = (
            np.zeros(len(self.chosen), np.int32)
            if labels is None
            else labels[self.chosen].astype(np.int32)
        )

    def __len__(self):
        return len(self.chosen)

    def __getitem__(self, i):
        return {"image": np.asarray(self.images[self.chosen[i]]), "label": self.labels[i]}


def digits(split: str) -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grayscale (UCI, Alpaydin & Kaynak 1998), their
    0 ... 16 made 0 ... 255.

    The source has no split of its own: every tenth image is "test" (180), the others are "train"
    (1,617)."""
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise UserError(f"the digits have the splits train and test, not {split!r}")
    pixels, target = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    chosen = (np.arange(len(images)) % 10 == 0) == (split == "test")
    return Arrays(images[chosen], target[chosen].astype(np.int32))


def arrays(split: str, folder: str) -> Arrays:
    """The images of a NumPy file, data.folder=FILE: an .npz with `images` and perhaps `labels`, or
    an .npy, which is mapped.

    The images are uint8 [N, H, W, C] or [N, H, W], of data.shape already, and the labels whole
    numbers from 0. An .npz without these names is taken by its order, as ADM writes it: arr_0 and
    arr_1. Every twentieth image is "test", the others are "train"; "all" is all of it."""
    path = pathlib.Path(folder).expanduser()
    try:
        opened = np.load(path, mmap_mode="r")
        if isinstance(opened, np.ndarray):
            images, labels = opened, None
        else:
            with opened:
                names = opened.files
                image = (
                    "images"
                    if "images" in names
                    else next((name for name in names if name != "labels"), "images")
                )
                label = next(
                    (name for name in ("labels", "arr_1") if name in names and name != image), None
                )
                images, labels = opened[image], opened[label] if label else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        cause = (
            isinstance(error, OSError) and error.strerror
        ) or f"it must be .npz or .npy ({error})"
        raise UserError(f"config.data.folder={folder} holds no arrays: {cause}") from None
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"the images of {path} must be uint8 [N, H, W, C] or [N, H, W], not {images.dtype} {images.shape}"
        )
    if labels is not None:
        labels = labels.reshape(len(labels), -1)[:, 0] if labels.size == len(images) else labels
        if (
            labels.shape != images.shape[:1]
            or labels.dtype.kind not in "iu"
            or labels.min(initial=0) < 0
        ):
            raise UserError(
                f"the labels of {path} must be {len(images)} whole numbers from 0, not {labels.dtype} {labels.shape}"
            )
    held_out = np.arange(len(images)) % 20 == 0
    parts = {"all": np.ones_like(held_out), "train": ~held_out, "test": held_out}
    if split not in parts:
        raise UserError(f"{path} has the splits {', '.join(parts)}, not {split!r}")
    images = images if images.ndim == 4 else images[..., None]
    stat = path.stat()
    return Arrays(
        images,
        labels,
        np.flatnonzero(parts[split]),
        f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}",
    )


class Tfds:
    """A source over a `tfds.data_source`, read without TensorFlow."""

    def __init__(self, examples, class_names: list[str], splits: dict[str, int]):
        self.examples, self.class_names, self.splits = examples, class_names, splits
        self.num_classes = len(class_names)

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        example = self.examples[int(i)]
        if "image" not in example:
            return example
        return {
            "image": example["image"],
            "label": np.int32(example["label"] if self.num_classes else 0),
        }


def tfds(split: str, name: str, folder: str = "") -> Tfds:
    """An image data set of TensorFlow Datasets, such as "cifar10" or "cifar10:3.0.2", prepared as
    ArrayRecord in `folder`.

    An empty folder means TFDS_DATA_DIR, else tfds's own default. Where the data set is not prepared
    yet, tfds downloads and prepares it, which needs a network and TensorFlow."""
    import tensorflow_datasets

    logging.getLogger("absl").setLevel(logging.ERROR)  # it recommends OpenCV, at every start
    folder = folder or os.environ.get("TFDS_DATA_DIR", "")
    try:
        builder: Any = tensorflow_datasets.builder(
            name, data_dir=folder or None, file_format="array_record"
        )
        if not builder.data_path.exists():
            prepare(builder, folder)
        features = builder.info.features
        class_names = list(features["label"].names) if "label" in features else []
        splits = {name: info.num_examples for name, info in builder.info.splits.items()}
        return Tfds(builder.as_data_source(split=split), class_names, splits)
    except UserError:
        raise
    except Exception as error:  # tfds raises a different class for each of a hundred causes
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"tfds cannot read {name!r} ({split}) from {folder or 'its default folder'}: {first}"
        ) from error


def prepare(builder, folder: str) -> None:
    """Downloads and prepares a data set of tfds, which needs a network, TensorFlow and
    importlib_resources."""
    try:
        builder.download_and_prepare()
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{builder.info.full_name} is not prepared as ArrayRecord in {folder or 'the default folder of tfds'}, and tfds "
            f"could not prepare it ({cause}); it needs a network and, in this checkout: pip install -e '.[tfds-prepare]'"
        ) from error


SOURCES = {"digits": digits, "tfds": tfds, "folder": folder, "arrays": arrays}


def load(settings: Any, split: str):
    """The source of config.data, held against the shape and number of classes that it declares;
    else UserError."""
    source = make(settings, split)
    check(source, settings, split)
    return source


def make(settings: Any, split: str):
    """The source that `settings` (config.data) names, as it is."""
    if settings.source not in SOURCES:
        raise UserError(
            f"unknown data source {settings.source!r}; {nearest(settings.source, SOURCES)}"
        )
    factory = SOURCES[settings.source]
    taken = [name for name in inspect.signature(factory).parameters if name != "split"]
    return factory(split, **{name: getattr(settings, name) for name in taken})


def check(source, settings: Any, split: str) -> None:
    """Raises UserError where a source is not what `settings` says."""
    called, shape, num_classes = (
        settings.name or settings.folder or settings.source,
        settings.shape,
        settings.num_classes,
    )
    if len(source) == 0:
        raise UserError(f"the split {split!r} of {called} is empty")
    example = source[0]
    if "image" not in example or example["image"].dtype != np.uint8:
        raise UserError(f"{called} has no 8-bit images, which training takes")
    if example["image"].shape != tuple(shape):
        raise UserError(
            f"{called} has images of shape {example['image'].shape}, but data.shape is {tuple(shape)}"
        )
    if (
        num_classes and source.num_classes != num_classes
    ):  # a label out of range would be clamped in silence
        raise UserError(
            f"{called} has {source.num_classes} classes, but data.num_classes is {num_classes}"
        )
