"""The source `folder`: image files at any depth, their labels and their splits."""

import collections
import csv
import dataclasses
import hashlib
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import images
from diffusion_jax.data.scan import fingerprint, reason, scan, shown

UNREADABLE = ("fail", "skip")
NAMED = 10  # files named in a message, at most
HELD_OUT = 20  # every so many files are the split "test" of a folder without splits


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
    fingerprint: str  # of the whole folder: its place, and its files' names, sizes and times

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, i):
        i = int(i)
        if self.pixels is not None:
            image = np.array(self.pixels[self.rows[i]])
        else:
            try:
                image = images.to_array(
                    images.decode(self.root / self.names[i], self.shape[2]), self.shape, self.resize
                )
            except Exception as error:  # it could be read when the run began
                raise UserError(
                    f"{shown(self.names[i])} in {self.root} can no longer be read: {reason(error)}"
                ) from error
        return {"image": image, "label": self.labels[i]}


def folder(
    split: str,
    folder: str,
    shape: tuple[int, ...],
    num_classes: int = 0,
    labels: str = "folders",
    resize: str = "center_crop",
    unreadable: str = "fail",
    cache: bool = False,
) -> Folder:
    """Your own images: the PNG, JPEG, WebP, BMP and GIF files beneath data.folder.

    They are numbered in the natural order of their paths; hidden files and folders are left out.
    The splits are the subfolders train, val and test, where there is train and one of the others
    ("test" is val where there is no test); in other folders "test" is one file in 20, by a hash of
    its path. "all" is all of it."""
    root, shape = existing(folder), tuple(shape)
    if shape[2] not in images.MODES:
        raise UserError(f"images of a folder have 1 or 3 channels, but data.shape is {shape}")
    found = listing(root)
    if not found.names:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.others.most_common(3))
        raise UserError(
            f"{root} holds no {', '.join(images.SUFFIXES)} files"
            + (f", only {kinds}" if kinds else "")
        )
    known = scan(root, found.names, found.stats, shape, resize, cache)
    notes = []
    if known.faults:
        which = few(f"{shown(found.names[i])} ({fault})" for i, fault in known.faults.items())
        complaint = (
            f"{len(known.faults)} of {len(found.names)} files in {root} cannot be read: {which}"
        )
        if unreadable == "fail":
            raise UserError(
                f"{complaint}; mend or remove them, or leave them out by data.unreadable=skip"
            )
        notes.append(f"{complaint}; they are left out")

    places = split_up(found)
    kept = {i: place for i, place in enumerate(places) if place and i not in known.faults}
    outside = sum(place is None for place in places)
    notes += (
        [
            f"{outside} images lie in none of the splits {', '.join(own_splits(found))} and are left out"
        ]
        if outside
        else []
    )
    words, label_notes = name_labels(
        root, [found.names[i] for i in kept], list(kept.values()), labels, num_classes
    )
    classes = sorted(set(words), key=natural)
    number = {word: i for i, word in enumerate(classes)}
    notes += label_notes + (
        empty_classes(found, classes) if labels == "folders" and classes else []
    )

    parts = {"all": list(range(len(kept)))}
    for name in own_splits(found) or ("train", "test"):
        parts[name] = [j for j, place in enumerate(kept.values()) if place.split == name]
    if "val" in parts:
        parts.setdefault("test", parts["val"])
    if split not in parts:
        raise UserError(f"{root} has the splits {', '.join(parts)}, not {split!r}")
    chosen, rows = parts[split], np.array(list(kept), np.int64)[parts[split]]
    if not chosen:
        raise UserError(
            f"the split {split!r} of the {len(kept)} images in {root} is empty; there is the split 'all', too"
        )
    return Folder(
        root=root,
        names=[found.names[i] for i in rows],
        labels=np.array([number[words[j]] if words else 0 for j in chosen], np.int32),
        class_names=[shown(word) for word in classes],
        shape=shape,
        resize=resize,
        sizes=known.sizes[rows],
        pixels=known.pixels,
        rows=rows,
        splits={name: len(part) for name, part in parts.items()},
        faults={shown(found.names[i]): fault for i, fault in known.faults.items()},
        notes=notes,
        fingerprint=fingerprint(root, found.names, found.stats),
    )


def existing(folder: str) -> pathlib.Path:
    root = pathlib.Path(folder).expanduser()
    if not folder:
        raise UserError(
            "config.data.folder is empty; it is the folder of the images, as in --config.data.folder=photos"
        )
    if not root.is_dir():
        raise UserError(f"config.data.folder={folder} is no folder")
    return root


class Listing(NamedTuple):
    """The files beneath a folder, in order."""

    names: list[str]  # of those that may be images, with / between folders
    stats: list[os.stat_result]
    folders: list[str]
    others: collections.Counter  # suffix -> number of the files that are none


def listing(root: pathlib.Path) -> Listing:
    found, folders, others = {}, [], collections.Counter()
    for entry, name in walk(root, "", (os.path.realpath(root),)):
        if entry.is_dir():
            folders.append(name)
        elif name.lower().endswith(images.SUFFIXES):
            found[name] = entry.stat()
        else:
            others[os.path.splitext(name)[1].lower() or "nameless"] += 1
    names = sorted(found, key=natural_path)
    return Listing(
        names, [found[name] for name in names], sorted(folders, key=natural_path), others
    )


def walk(
    folder: pathlib.Path, prefix: str, above: tuple[str, ...]
) -> Iterator[tuple[os.DirEntry, str]]:
    """(entry, path beneath the root) of everything in a folder but what is hidden or broken; links
    are followed, loops not."""
    try:
        with os.scandir(folder) as entries:
            entries = list(entries)
    except OSError as error:
        raise UserError(f"{shown(str(folder))} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith(".") or not (entry.is_dir() or entry.is_file()):
            continue
        name, real = prefix + entry.name, os.path.realpath(entry.path)
        if entry.is_dir() and real not in above:
            yield entry, name
            yield from walk(pathlib.Path(entry.path), name + "/", (*above, real))
        elif entry.is_file():
            yield entry, name


def natural(name: str) -> tuple:
    """A key by which "2" comes before "10". Text is compared by code points, in Unicode's normal
    form C."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name))  # text and digits in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def natural_path(name: str) -> list:
    return [natural(part) for part in name.split("/")]


def few(items: Iterable[str]) -> str:
    """The first NAMED of them."""
    items = list(items)
    return ", ".join(items[:NAMED]) + (
        f", and {len(items) - NAMED} more" if len(items) > NAMED else ""
    )


class Place(NamedTuple):
    split: str
    path: str  # beneath the folder of the split


def own_splits(found: Listing) -> tuple[str, ...]:
    """The subfolders that are splits; none, unless there are train and another."""
    own = tuple(name for name in ("train", "val", "test") if name in found.folders)
    return own if "train" in own and len(own) > 1 else ()


def split_up(found: Listing) -> list[Place | None]:
    """The place of every file, None where it lies outside the subfolders that are splits."""
    own = own_splits(found)
    if not own:
        return [Place("test" if held_out(name) else "train", name) for name in found.names]
    cut = [name.partition("/") for name in found.names]
    return [Place(first, rest) if first in own and rest else None for first, _, rest in cut]


def held_out(name: str) -> bool:
    """Whether a file is one of every HELD_OUT: by a hash of its path, so that files that come and
    go move no other."""
    digest = hashlib.sha256(
        unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    ).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT == 0


def name_labels(
    root: pathlib.Path, names: Sequence[str], places: Sequence[Place], rule: str, num_classes: int
) -> tuple[list[str], list[str]]:
    """(the label of every file, none where the rule gives none; what to say about it). UserError
    where some lack one."""
    if rule == "none":
        return [], []
    if rule == "folders":
        words = [
            first if rest else None
            for first, _, rest in (place.path.partition("/") for place in places)
        ]
        if not num_classes and None in words:
            return [], []
        wanted, notes = (
            "a folder of its class; data.labels=prefix, none or a CSV file are other ways",
            [],
        )
    elif rule == "prefix":
        cut = [name.rpartition("/")[2].partition("_") for name in names]
        words = [label if underscore else None for label, underscore, _ in cut]
        wanted, notes = "a label and an underscore before its name", []
    else:
        table = read_table(root, rule)
        words = [table.pop(unicodedata.normalize("NFC", name), None) for name in names]
        wanted = f"a line in {rule}, by its path beneath {root}"
        notes = (
            [f"{len(table)} lines of {rule} name no image that is read: {few(table)}"]
            if table
            else []
        )
    lacking = [shown(name) for name, word in zip(names, words, strict=True) if not word]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(names)} images have no label, which needs {wanted}: {few(lacking)}"
        )
    return [word for word in words if word], notes


def read_table(root: pathlib.Path, path: str) -> dict[str, str]:
    """file -> label, from a CSV of these two columns. A first line that names both `file` and
    `label` says which is which."""
    for candidate in (pathlib.Path(path).expanduser(), root / path):
        if candidate.is_file():
            break
    else:
        raise UserError(
            f"config.data.labels must be folders, prefix, none or a CSV file, but there is no {path!r}"
        )
    try:
        with candidate.open(newline="", encoding="utf-8-sig") as file:
            lines = [
                (number, [cell.strip() for cell in line])
                for number, line in enumerate(csv.reader(file), 1)
                if line
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{candidate} cannot be read as a CSV file in UTF-8: {error}") from None
    head = [cell.lower() for cell in lines[0][1]] if lines else []
    columns = (0, 1)
    if {"file", "label"} <= set(head):
        columns, lines = (head.index("file"), head.index("label")), lines[1:]
    table = {}
    for number, cells in lines:
        if len(cells) <= max(columns) or not cells[columns[1]]:
            raise UserError(
                f"line {number} of {candidate} must be a file and its label, as in cat/1.png,cat"
            )
        name, label = (
            unicodedata.normalize("NFC", cells[columns[0]]).removeprefix("./"),
            cells[columns[1]],
        )
        if table.setdefault(name, label) != label:
            raise UserError(f"{candidate} gives {name} two labels: {table[name]} and {label}")
    return table


def empty_classes(found: Listing, classes: list[str]) -> list[str]:
    """What to say about subfolders that would be classes if they held an image that can be read."""
    prefixes = tuple(f"{name}/" for name in own_splits(found)) or ("",)
    places = {
        folder.removeprefix(prefix)
        for folder in found.folders
        for prefix in prefixes
        if folder.startswith(prefix)
    }
    empty = sorted({name for name in places if "/" not in name} - set(classes), key=natural)
    return (
        [f"no class, since they hold no image that can be read: {few(map(shown, empty))}"]
        if empty
        else []
    )
