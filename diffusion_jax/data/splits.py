"""Which files of a folder belong to which split, and what their place beneath it is.

The subfolders with the usual names, in upper or lower case, are splits, never classes:

- train, training: the split "train";
- val, valid, validation, dev: the split "val";
- test, testing: the split "test".

A held-out one ("val" or "test") is always a split. A train folder is one where a held-out one lies
beside it, or where no other subfolder holds images; among other subfolders it is a class like them,
which is noted, since `train` may be a vehicle. Where there is no train folder, "train" is all that
lies outside of the held-out ones. Where there is no held-out folder, "test" is one file in 20, by a
hash of its path beneath the folder of its split. "test" is "val" where there is no other.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from diffusion_jax.data.listing import Listing, few
from diffusion_jax.data.scan import shown

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in NAMES.items() for name in names}
HELD_OUT = 20  # every so many files are the split "test" of a folder without held-out subfolders


class Place(NamedTuple):
    split: str
    path: str  # beneath the folder of the split


class Splits(NamedTuple):
    """own: subfolder -> split. places: of every file, None where it is in no split."""

    own: dict[str, str]
    places: list[Place | None]
    notes: list[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The splits but "all", in order."""
        found = {"train", *self.own.values()}
        if not found & {"val", "test"}:
            found.add("test")
        return tuple(split for split in NAMES if split in found)

    def called(self, split: str) -> str:
        """The split that a name stands for: its own, or that of the subfolder with this name."""
        own = {name.lower(): meant for name, meant in self.own.items()}
        return own.get(split.lower(), split) if split not in (*self.names, "all") else split


def own_folders(found: Listing) -> tuple[dict[str, str], list[str]]:
    """(subfolder that is a split -> its split, what to say about it)."""
    named = {
        name: SPLIT_OF[name.lower()]
        for name in found.folders
        if "/" not in name and name.lower() in SPLIT_OF
    }
    if set(named.values()) != {"train"}:
        return named, []  # none, or a held-out one among them
    with_images = {first for first, _, rest in (n.partition("/") for n in found.names) if rest}
    called = few(shown(name) for name in named)
    if others := sorted(with_images - set(named)):
        beside = few(shown(name) for name in others)
        return {}, [f"{called} is a class, no split, since there are others: {beside}"]
    about = f'{called} is the split "train"; "test" is one in {HELD_OUT} of its images, by a hash'
    return named, [f"{about} of the path, which are not trained on"]


def split_up(found: Listing) -> Splits:
    """The place of every file."""
    own, notes = own_folders(found)
    by_hash = not set(own.values()) & {"val", "test"}
    loose = "train" if "train" not in own.values() else None  # what lies outside of them
    places = []
    for name in found.names:
        first, _, rest = name.partition("/")
        split, path = (own[first], rest) if first in own and rest else (loose, name)
        if split and by_hash:
            split = "test" if held_out(path) else "train"
        places.append(Place(split, path) if split else None)
    outside = sum(place is None for place in places)
    listed = ", ".join(split for split in NAMES if split in own.values())
    if outside:
        notes.append(f"{outside} images lie in none of the splits {listed} and are left out")
    elif loose and own and any(name.partition("/")[0] not in own for name in found.names):
        notes.append(f'there is no train folder: "train" is what lies outside of {listed}')
    return Splits(own, places, notes)


def held_out(name: str) -> bool:
    """Whether a file is one of every HELD_OUT: by a hash of its path, so that files that come and
    go move no other."""
    digest = hashlib.sha256(
        unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    ).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT == 0


def parts(splits: Splits, places: Sequence[Place]) -> dict[str, list[int]]:
    """Split -> the numbers of its files among `places`, which are those that are kept."""
    found = {"all": list(range(len(places)))}
    for name in splits.names:
        found[name] = [i for i, place in enumerate(places) if place.split == name]
    if "val" in found:
        found.setdefault("test", found["val"])
    return found
