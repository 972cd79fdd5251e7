"""Data sources: anything with `__len__` and `__getitem__`, whose examples are {"image": uint8 [H, W, C], "label": int}.

`num_classes` is the number of labels that occur, 0 where there are none.

A source is built from (split, name, folder); most need the split alone.
"""

import os
from typing import Any

import numpy as np

from diffusion_jax.errors import UserError, nearest


class Arrays:
    """A source of images [N, H, W, C] uint8 and labels [N] in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels
        self.num_classes = int(labels.max(initial=0)) + 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": np.int32(self.labels[i])}


def digits(split: str, name: str = "", folder: str = "") -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grayscale (UCI, Alpaydin & Kaynak 1998), their 0 ... 16 made 0 ... 255.

    The source has no split of its own: every tenth image is "test" (180), the others are "train" (1,617).
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise UserError(f"the digits have the splits train and test, not {split!r}")
    pixels, target = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    chosen = (np.arange(len(images)) % 10 == 0) == (split == "test")
    return Arrays(images[chosen], target[chosen].astype(np.int32))


class Tfds:
    """A source over a `tfds.data_source`, read without TensorFlow."""

    def __init__(self, examples, num_classes: int):
        self.examples, self.num_classes = examples, num_classes

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        example = self.examples[int(i)]
        if "image" not in example:
            return example
        return {"image": example["image"], "label": np.int32(example["label"] if self.num_classes else 0)}


def tfds(split: str, name: str, folder: str = "") -> Tfds:
    """An image data set of TensorFlow Datasets, such as "cifar10" or "cifar10:3.0.2", prepared as ArrayRecord in `folder`.

    An empty folder means TFDS_DATA_DIR, else tfds's own default. Where the data set is not prepared yet, tfds downloads and
    prepares it, which needs a network and TensorFlow.
    """
    import tensorflow_datasets

    folder = folder or os.environ.get("TFDS_DATA_DIR", "")
    try:
        builder: Any = tensorflow_datasets.builder(name, data_dir=folder or None, file_format="array_record")
        if not builder.data_path.exists():
            prepare(builder, folder)
        features = builder.info.features
        num_classes = features["label"].num_classes if "label" in features else 0
        return Tfds(builder.as_data_source(split=split), num_classes)
    except UserError:
        raise
    except Exception as error:  # tfds raises a different class for each of a hundred causes
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"tfds cannot read {name!r} ({split}) from {folder or 'its default folder'}: {first}") from error


def prepare(builder, folder: str) -> None:
    """Downloads and prepares a data set of tfds, which needs a network, TensorFlow and importlib_resources."""
    try:
        builder.download_and_prepare()
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{builder.info.full_name} is not prepared as ArrayRecord in {folder or 'the default folder of tfds'}, and tfds "
            f"could not prepare it ({cause}); it needs a network and: pip install tensorflow importlib_resources"
        ) from error


SOURCES = {"digits": digits, "tfds": tfds}


def load(source: str, split: str, name: str, folder: str, shape: tuple[int, ...], num_classes: int):
    """The named source, held against the shape and number of classes that the experiment declares; else UserError."""
    if source not in SOURCES:
        raise UserError(f"unknown data source {source!r}; {nearest(source, SOURCES)}")
    loaded = SOURCES[source](split, name, folder)
    if len(loaded) == 0:
        raise UserError(f"the split {split!r} of {name or source} is empty")
    example = loaded[0]
    if "image" not in example or example["image"].dtype != np.uint8:
        raise UserError(f"{name or source} has no 8-bit images, which training takes")
    if example["image"].shape != tuple(shape):
        raise UserError(f"{name or source} has images of shape {example['image'].shape}, but data.shape is {tuple(shape)}")
    if num_classes and loaded.num_classes != num_classes:  # a label out of range would be clamped in silence
        raise UserError(f"{name or source} has {loaded.num_classes} classes, but data.num_classes is {num_classes}")
    return loaded
