"""The labels of the files of a folder: by their subfolders, their names or a table."""

import csv
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.listing import Listing, few, natural
from diffusion_jax.data.scan import shown
from diffusion_jax.data.splits import Place


def name_labels(
    root: pathlib.Path, names: Sequence[str], places: Sequence[Place], rule: str, num_classes: int
) -> tuple[list[str], list[str]]:
    """(the label of every file, none where the rule gives none; what to say about it). UserError
    where some lack one."""
    if rule == "none":
        return [], []
    notes = []
    if rule == "folders":
        cut = [place.path.partition("/") for place in places]
        words = [first if rest else None for first, _, rest in cut]
        if not num_classes and None in words:
            return [], []
        other = "config.data.source.labels=prefix, none or a CSV file are other ways"
        wanted = f"a folder of its class; {other}"
    elif rule == "prefix":
        cut = [name.rpartition("/")[2].partition("_") for name in names]
        words = [label if underscore else None for label, underscore, _ in cut]
        wanted = "a label and an underscore before its name"
    else:
        table = read_table(table_path(root, rule))
        words = [table.pop(unicodedata.normalize("NFC", name), None) for name in names]
        wanted = f"a line in {rule}, by its path beneath {root}"
        if table:
            unused = f"{len(table)} lines of {rule} name no image that is read"
            notes = [f"{unused}: {few(table)}"]
    lacking = [shown(name) for name, word in zip(names, words, strict=True) if not word]
    if lacking:
        raise UserError(
            f"{len(lacking)} of {len(names)} images have no label, which needs {wanted}: "
            f"{few(lacking)}"
        )
    return [word for word in words if word], notes


def table_path(root: pathlib.Path, rule: str) -> pathlib.Path:
    """The CSV file that the setting `labels` names, as it stands or beneath the folder."""
    for candidate in (pathlib.Path(rule).expanduser(), root / rule):
        if candidate.is_file():
            return candidate
    raise UserError(
        "config.data.source.labels must be folders, prefix, none or a CSV file, "
        f"but there is no {rule!r}"
    )


def read_table(path: pathlib.Path, what: str = "label") -> dict[str, str]:
    """file -> label, from a CSV of these two columns. A first line that names both `file` (or
    `file_name`) and `label` says which is which.

    what: the name of the second column, "label" or "text"; a text may be empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [
                (number, [cell.strip() for cell in line])
                for number, line in enumerate(csv.reader(file), 1)
                if line
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file in UTF-8: {error}") from None
    head = [cell.lower() for cell in lines[0][1]] if lines else []
    columns, width, is_text = (0, 1), 2, what == "text"
    file = "file" if "file" in head else "file_name"
    if {file, what} <= set(head):
        columns, width, lines = (head.index(file), head.index(what)), len(head), lines[1:]
    table = {}
    for number, cells in lines:
        if len(cells) <= max(columns) or not (cells[columns[1]] or is_text):
            example = 'cat/1.png,"a cat"' if is_text else "cat/1.png,cat"
            raise UserError(
                f"line {number} of {path} must be a file and its {what}, as in {example}"
            )
        if is_text and len(cells) > width:
            raise UserError(
                f'line {number} of {path} has commas in its text, which needs quotes, "'
            )
        name, label = (cells[column] for column in columns)
        name = unicodedata.normalize("NFC", name).removeprefix("./")
        if table.setdefault(name, label) != label:
            raise UserError(f"{path} gives {name} two {what}s: {table[name]} and {label}")
    return table


def empty_classes(found: Listing, own: Mapping[str, str], classes: Iterable[str]) -> list[str]:
    """What to say about subfolders that would be classes if they held an image that can be read.

    own: subfolder that is a split -> its split.
    """
    places = set()
    for folder in found.folders:
        first, _, rest = folder.partition("/")
        if first not in own and "train" in own.values():
            continue  # in no split
        place = rest if first in own else folder
        if place and "/" not in place:
            places.add(place)
    empty = sorted(places - set(classes), key=natural)
    if not empty:
        return []
    return [f"no class, since they hold no image that can be read: {few(map(shown, empty))}"]
