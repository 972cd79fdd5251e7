"""The files beneath a folder, in the natural order of their paths."""

import collections
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.images import SUFFIXES
from diffusion_jax.data.scan import shown

NAMED = 10  # files named in a message, at most


class Listing(NamedTuple):
    """The files beneath a folder, in order."""

    names: list[str]  # of those that may be images, with / between folders
    stats: list[os.stat_result]
    folders: list[str]
    others: list[str]  # files that are no images


def listing(root: pathlib.Path) -> Listing:
    found, folders, others = {}, [], []
    for entry, name in walk(root, "", (os.path.realpath(root),)):
        if entry.is_dir():
            folders.append(name)
        elif name.lower().endswith(SUFFIXES):
            found[name] = entry.stat()
        else:
            others.append(name)
    names = sorted(found, key=natural_path)
    return Listing(
        names,
        [found[name] for name in names],
        sorted(folders, key=natural_path),
        sorted(others, key=natural_path),
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


def kinds(names: Iterable[str]) -> str:
    """How many files of each suffix there are, the most frequent first: "10 .txt, 2 .json"."""
    suffixes = (os.path.splitext(name)[1].lower() or "nameless" for name in names)
    counts = collections.Counter(suffixes).most_common()
    return few(f"{count} {shown(suffix)}" for suffix, count in counts)


def natural(name: str) -> tuple:
    """A key by which "2" comes before "10". Text is compared by code points, in Unicode's normal
    form C."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name))  # text and digits in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def natural_path(name: str) -> list:
    return [natural(part) for part in name.split("/")]


def few(items: Iterable[str]) -> str:
    """The first NAMED of them, and how many more there are."""
    items = list(items)
    more = f", and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(items[:NAMED]) + more
