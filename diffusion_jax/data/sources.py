"""Data sources: anything with `__len__` and `__getitem__`, whose examples are name -> array.

The usual names are "image", uint8 [H, W, C] or float32 with a `range`, and "label", an int; a
source may yield any others. `num_classes` is the number of labels that occur, 0 where there are
none. A source that knows more of itself says so: `range`, the (least, largest) value of its float
images, None for bytes; its `labels` [N], `class_names`, `sizes` [N, 2], `texts` [N, 256] (its
captions, the entry "text"), `splits` (name -> examples), `faults` (file -> why it is left out),
`notes` and a `fingerprint`, text that is another where the examples are others. Latents say what
shape of images they stand for, `stands_for`, and give those of `mirrored(i)`. Images that are
trained on in several sizes have their `buckets` [N], the `bucket_sizes`, and `bucketed()`, the same
source in these sizes.

A factory of SOURCES takes the split first; a `Declared` is given by the run, and all else is a
setting."""

import logging
import os
from typing import Annotated, Any

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.settings import FREE, at_least
from diffusion_jax.data import texts
from diffusion_jax.data.arrays import CAPTIONS, Arrays, arrays
from diffusion_jax.data.averaging import averaged
from diffusion_jax.data.emoji import emoji
from diffusion_jax.data.folder import folder
from diffusion_jax.data.latents import latents
from diffusion_jax.data.spec import Declared, spec_of

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def digits(split: str, captions: bool = False, average: int = 1) -> Arrays:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grayscale (UCI, Alpaydin & Kaynak 1998), their
    0 ... 16 made 0 ... 255.

    The source has no split of its own: every tenth image is "test" (180), the others are "train"
    (1,617).

    Args:
      captions: each digit twice, the second time black on white, with the entry text: "three",
        "three inverted".
      average: the images are the means of so many by so many pixels, as 2 for 4 x 4 images.
    """
    at_least(1, average=average)
    from sklearn.datasets import load_digits

    if split not in ("train", "test"):
        raise UserError(f"the digits have the splits train and test, not {split!r}")
    pixels, target = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    images = averaged(images, average, rounded=True).astype(np.uint8)
    chosen = (np.arange(len(images)) % 10 == 0) == (split == "test")
    images, labels = images[chosen], np.asarray(target[chosen], np.int32)
    if not captions:
        return Arrays(images, labels)
    said = [WORDS[label] for label in labels]
    written = texts.encode([*said, *(f"{word} inverted" for word in said)])
    both = np.concatenate([images, 255 - images])
    return Arrays(both, np.concatenate([labels, labels]), others={"text": written})


class Tfds:
    """A source over a `tfds.data_source`, read without TensorFlow. caption: the feature that holds
    the texts, "" where there are none. average: of so many by so many pixels are the means the
    images."""

    range = None  # of floats; these are bytes

    def __init__(
        self,
        examples,
        class_names: list[str],
        splits: dict[str, int],
        caption: str = "",
        undecoded: Any = None,
        average: int = 1,
    ):
        self.examples, self.class_names, self.splits = examples, class_names, splits
        self.caption = caption
        self.undecoded = examples if undecoded is None else undecoded
        self.num_classes, self.average = len(class_names), average

    @property
    def texts(self) -> np.ndarray | None:
        """uint8 [N, 256], read without the images; None where there are none."""
        if not self.caption:
            return None
        found = (self.undecoded[i][self.caption] for i in range(len(self)))
        return texts.encode([first_text(value) for value in found])

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        example = self.examples[int(i)]
        if "image" not in example:
            return example
        image = example["image"]
        if self.average > 1:
            image = averaged(image, self.average, rounded=True).astype(np.uint8)
        found = {
            "image": image,
            "label": np.int32(example["label"] if self.num_classes else 0),
        }
        if self.caption:
            found["text"] = texts.encode([first_text(example[self.caption])])[0]
        return found


def first_text(value: Any) -> str:
    """The text of a feature of tfds, of several the first, "" where there is none."""
    if isinstance(value, dict):
        value = next((value[name] for name in CAPTIONS if name in value), "")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return first_text(value[0]) if value else ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def caption_of(features) -> str:
    """The name of the feature that holds texts, "" where there is none of CAPTIONS."""
    import tensorflow_datasets

    kind: Any = tensorflow_datasets.features.Text

    def has_text(feature):
        inner = getattr(feature, "feature", None)
        parts = feature.values() if hasattr(feature, "values") else [inner] if inner else []
        return isinstance(feature, kind) or any(map(has_text, parts))

    return next((name for name in CAPTIONS if name in features and has_text(features[name])), "")


def tfds(split: str, name: str = "", folder: Annotated[str, FREE] = "", average: int = 1) -> Tfds:
    """An image data set of TensorFlow Datasets, prepared as ArrayRecord.

    A feature named text or caption (of several captions the first) is the entry "text". Where the
    set is not prepared yet, tfds downloads and prepares it, which needs a network and
    TensorFlow.

    Args:
      name: the data set, as in cifar10 or cifar10:3.0.2.
      folder: where it is prepared; empty for TFDS_DATA_DIR, else tfds's own default.
      average: the images are the means of so many by so many pixels, as 2 for half the size.
    """
    at_least(1, average=average)
    if not name:
        setting = "config.data.source.name"
        raise UserError(f"{setting} is empty; it is the data set, as in --{setting}=cifar10:3.0.2")
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
        caption, skip = caption_of(features), tensorflow_datasets.decode.SkipDecoding
        examples, undecoded = builder.as_data_source(split=split), None
        if caption and "image" in features:
            undecoded = builder.as_data_source(split=split, decoders={"image": skip()})
        return Tfds(examples, class_names, splits, caption, undecoded, average)
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
            f"{builder.info.full_name} is not prepared as ArrayRecord in "
            f"{folder or 'the default folder of tfds'}, and tfds could not prepare it ({cause}); "
            "it needs a network and, in this checkout: pip install -e '.[tfds-prepare]'"
        ) from error


SOURCES = {
    "digits": digits,
    "emoji": emoji,
    "tfds": tfds,
    "folder": folder,
    "arrays": arrays,
    "latents": latents,
}


def check(source, declared: Declared, split: str, called: str, entry: str = "image") -> None:
    """Raises UserError where a source is not what is declared.

    called: the name of the data in messages. entry: the name of what the diffusion models.
    """
    if len(source) == 0:
        raise UserError(f"the split {split!r} of {called} is empty")
    spec, wanted = spec_of(source), tuple(declared.shape)
    if entry not in spec:
        raise UserError(f"{called} has no {entry!r}, only {', '.join(spec) or 'nothing'}")
    shape, dtype = spec[entry]
    if (stands_for := getattr(source, "stands_for", None)) is not None:
        shape, dtype = stands_for, np.dtype(np.uint8)  # of images, as latents
    floats = dtype == np.float32 and getattr(source, "range", None) is not None
    if entry == "image" and dtype != np.uint8 and not floats:
        raise UserError(f"{called} has images of {dtype}; they must be of 8 bits")
    if entry != "image" and dtype != np.dtype(declared.dtype):
        raise UserError(f"{called} has {entry!r} of {dtype}; they must be of {declared.dtype}")
    if shape != wanted:
        what = "images" if entry == "image" else f"{entry!r}"
        raise UserError(f"{called} has {what} of shape {shape}, but config.data.shape is {wanted}")
    # a label out of range would be clamped in silence
    if declared.num_classes and source.num_classes != declared.num_classes:
        raise UserError(
            f"{called} has {source.num_classes} classes, "
            f"but config.data.num_classes is {declared.num_classes}"
        )
