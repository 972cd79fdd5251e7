"""The source `folder`: image files at any depth, their labels and their splits."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Collection
from typing import Annotated, Literal, get_args

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.settings import FREE
from diffusion_jax.data import buckets as sizing
from diffusion_jax.data import captions as captioning
from diffusion_jax.data import images
from diffusion_jax.data.labels import empty_classes, name_labels, table_path
from diffusion_jax.data.listing import Listing, few, kinds, listing, natural
from diffusion_jax.data.scan import Scan, fingerprint, reason, scan, shown
from diffusion_jax.data.spec import Declared
from diffusion_jax.data.splits import parts, split_up

Resize = Literal["center_crop", "stretch", "none"]
Unreadable = Literal["fail", "skip"]


@dataclasses.dataclass
class Folder:
    """A source of the image files of a split."""

    root: pathlib.Path
    names: list[str]  # paths beneath the root
    labels: np.ndarray  # int32 [N]; all 0 where there are none
    class_names: list[str]
    shape: tuple[int, ...]
    resize: str
    sizes: np.ndarray  # int [N, 2], height and width of the files' images
    pixels: np.ndarray | None  # uint8 [., H, W, C] of the whole folder, where they are kept
    rows: np.ndarray  # int [N], of `pixels`
    splits: dict[str, int]  # every split -> its examples
    faults: dict[str, str]  # files of the folder that cannot be read -> why
    notes: list[str]  # what a user should know
    fingerprint: str  # of the whole folder: its place, its files' names, sizes and times, captions
    texts: np.ndarray | None = None  # uint8 [N, 256], where there are captions
    bucket_sizes: tuple[tuple[int, int], ...] = ()  # height and width of the buckets
    buckets: np.ndarray | None = None  # int [N], the bucket of each image, where there are any
    in_buckets: bool = False  # whether images have the size of their bucket
    range: None = None  # of floats; these are bytes

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        i, shape = int(i), self.shape
        if self.in_buckets and self.buckets is not None:
            shape = (*self.bucket_sizes[self.buckets[i]], shape[2])
        if self.pixels is not None:
            image = np.array(self.pixels[self.rows[i]])
        else:
            try:
                image = images.to_array(
                    images.decode(self.root / self.names[i], shape[2]), shape, self.resize
                )
            except Exception as error:  # it could be read when the run began
                raise UserError(
                    f"{shown(self.names[i])} in {self.root} can no longer be read: {reason(error)}"
                ) from error
        example = {"image": image, "label": self.labels[i]}
        return example if self.texts is None else example | {"text": self.texts[i]}

    def bucketed(self) -> "Folder":
        """The same images, each of its bucket's size, for training."""
        return dataclasses.replace(self, in_buckets=True)


def folder(
    split: str,
    declared: Declared,
    folder: Annotated[str, FREE] = "",
    labels: str = "folders",
    captions: str = "auto",
    resize: Resize = "center_crop",
    buckets: tuple[str, ...] = (),
    unreadable: Unreadable = "fail",
    cache: Annotated[bool, FREE] = False,
) -> Folder:
    """Your own images: the PNG, JPEG, WebP, BMP, GIF and TIFF files beneath a folder.

    They are numbered in the natural order of their paths; hidden files and folders are left out.
    The subfolders train, val (valid, validation, dev) and test are the splits; in other folders
    "test" is one file in 20, by a hash of its path. "all" is all of it.

    Args:
      folder: where the images lie, at any depth.
      labels: folders, the subfolders; prefix, file names up to their first _; none; or a CSV file
        of file,label.
      captions: auto, metadata.jsonl or metadata.csv (file_name and text) in the folder or its
        subfolders, else .txt files beside the images; txt, those alone; none; or a CSV file of
        file,text or a .jsonl file. An image without one has an empty text.
      resize: how images get config.data.shape; none where they have it.
      buckets: sizes, height x width, to train on, as 64x64,48x80,80x48: every image gets that of
        the nearest proportions, and a batch is of one size. All else has config.data.shape.
      unreadable: whether files that cannot be read stop the program, or are left out.
      cache: keep the decoded images in ~/.cache/diffusion_jax/data.
    """
    among("resize", resize, get_args(Resize))
    among("unreadable", unreadable, get_args(Unreadable))
    root, shape = existing(folder), tuple(declared.shape)
    sizes = sizing.parse(buckets)
    if sizes and (cache or resize == "none"):
        raise ValueError("buckets need resize=center_crop or stretch, and cache=false")
    if len(shape) != 3 or shape[2] not in images.MODES:
        raise UserError(
            f"images of a folder have 1 or 3 channels, but config.data.shape is {shape}"
        )
    found = listing(root)
    if not found.names:
        only = f", only {kinds(found.others)}" if found.others else ""
        raise UserError(f"{root} holds no {', '.join(images.SUFFIXES)} files{only}")
    known = scan(root, found.names, found.stats, shape, resize, cache)
    notes = fault_notes(root, found, known, unreadable)

    splits = split_up(found)
    kept = {i: place for i, place in enumerate(splits.places) if place and i not in known.faults}
    names, places = [found.names[i] for i in kept], list(kept.values())
    words, label_notes = name_labels(root, names, places, labels, declared.num_classes)
    classes = sorted(set(words), key=natural)
    number = {word: i for i, word in enumerate(classes)}
    told = captioning.find(root, found, captions)
    notes += splits.notes + other_notes(root, found, labels, told.files) + label_notes
    if labels == "folders" and classes:
        notes += empty_classes(found, splits.own, classes)

    numbers, called = parts(splits, places), splits.called(split)
    if called not in numbers:
        raise UserError(f"{root} has the splits {', '.join(numbers)}, not {split!r}")
    chosen = numbers[called]
    if not chosen:
        raise UserError(
            f"the split {split!r} of the {len(kept)} images in {root} is empty; "
            "there is the split 'all', too"
        )
    rows = np.array(list(kept), np.int64)[chosen]
    known_as, texts = fingerprint(root, found.names, found.stats), None
    if told.texts is not None:
        texts, said = captioning.encoded([told.texts[i] for i in rows], [names[j] for j in chosen])
        notes += said
        known_as += hashlib.sha256("\0".join(told.texts).encode()).hexdigest()[:16]
    bucket = sizing.nearest(known.sizes[rows], sizes) if sizes else None
    notes += sizing.notes(sizes, bucket)
    return Folder(
        root=root,
        names=[names[j] for j in chosen],
        labels=np.array([number[words[j]] if words else 0 for j in chosen], np.int32),
        class_names=[shown(word) for word in classes],
        shape=shape,
        resize=resize,
        sizes=known.sizes[rows],
        pixels=known.pixels,
        rows=rows,
        splits={name: len(part) for name, part in numbers.items()},
        faults={shown(found.names[i]): fault for i, fault in known.faults.items()},
        notes=notes,
        fingerprint=known_as,
        texts=texts,
        bucket_sizes=sizes,
        buckets=bucket,
    )


def among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, not {value!r}")


def existing(folder: str) -> pathlib.Path:
    root, called = pathlib.Path(folder).expanduser(), "config.data.source.folder"
    if not folder:
        raise UserError(
            f"{called} is empty; it is the folder of the images, as in --{called}=photos"
        )
    if not root.is_dir():
        raise UserError(f"{called}={folder} is no folder")
    return root


def fault_notes(root: pathlib.Path, found: Listing, known: Scan, unreadable: str) -> list[str]:
    """What to say about files that cannot be read; UserError where they stop the program."""
    if not known.faults:
        return []
    which = few(f"{shown(found.names[i])} ({fault})" for i, fault in known.faults.items())
    count = f"{len(known.faults)} of {len(found.names)} files"
    complaint = f"{count} in {root} cannot be read: {which}"
    if unreadable == "fail":
        raise UserError(
            f"{complaint}; mend or remove them, or leave them out by "
            "config.data.source.unreadable=skip"
        )
    return [f"{complaint}; they are left out"]


def other_notes(
    root: pathlib.Path, found: Listing, labels: str, read: Collection[str]
) -> list[str]:
    """What to say about files that are no images, but for the table of the labels and files that
    captions were read from."""
    others = [name for name in found.others if name not in read]
    if others and labels not in ("folders", "prefix", "none"):
        table = table_path(root, labels).resolve()
        others = [name for name in others if (root / name).resolve() != table]
    if not others:
        return []
    are = "other file is" if len(others) == 1 else "other files are"
    return [f"{len(others)} {are} left out: {kinds(others)}"]
