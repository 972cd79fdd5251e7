"""The captions of the files of a folder: text files beside them, or a table."""

import json
import pathlib
import posixpath
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import texts
from diffusion_jax.data.labels import read_table
from diffusion_jax.data.listing import Listing, few
from diffusion_jax.data.scan import shown

TABLES = ("metadata.jsonl", "metadata.csv")  # as Hugging Face's `datasets` names them
RULES = ("auto", "none", "txt")


class Captions(NamedTuple):
    """texts: of every file that may be an image, "" where it has none; None where there are no
    captions. files: paths beneath the folder that captions were read from."""

    texts: list[str] | None
    files: set[str]


def find(root: pathlib.Path, found: Listing, rule: str) -> Captions:
    """The captions by a rule: of RULES, or a table's file; UserError where they do not fit.

    auto: the TABLES, in the folder and its subfolders, else text files, else none."""
    if rule == "none":
        return Captions(None, set())
    if rule not in RULES:
        path = table_path(root, rule)
        own = posixpath.relpath(path.resolve().as_posix(), root.resolve().as_posix())
        return Captions(by_name(root, found.names, rows(path, ""), rule), {own})
    tables = [name for name in found.others if posixpath.basename(name) in TABLES]
    if tables and rule == "auto":
        lines = {}
        for name in tables:
            lines |= rows(root / name, posixpath.dirname(name))
        if any(lines.values()):
            return Captions(by_name(root, found.names, lines, few(tables)), set(tables))
    beside = [posixpath.splitext(name)[0] + ".txt" for name in found.names]
    files = set(beside) & set(found.others)
    if not files:
        if rule == "auto":
            return Captions(None, set())
        raise UserError(f"config.data.source.captions=txt, but no image in {root} has a .txt file")
    words = {name: read_text(root / name) for name in sorted(files)}
    return Captions([words.get(name, "") for name in beside], files)


def table_path(root: pathlib.Path, rule: str) -> pathlib.Path:
    """The file that the setting names, as it stands or beneath the folder."""
    for candidate in (pathlib.Path(rule).expanduser(), root / rule):
        if candidate.suffix.lower() in (".jsonl", ".csv") and candidate.is_file():
            return candidate
    raise UserError(
        f"config.data.source.captions must be {', '.join(RULES)} or a .jsonl or .csv file, "
        f"but there is no {rule!r}"
    )


def read_text(path: pathlib.Path) -> str:
    try:
        return one_line(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or "it is no text in UTF-8"
        raise UserError(f"the caption {shown(str(path))} cannot be read: {cause}") from None


def one_line(text: str) -> str:
    return " ".join(text.split())


def rows(path: pathlib.Path, beneath: str) -> dict[str, str]:
    """file -> text, from a table. beneath: the folder that its files' names start from, relative to
    the root."""
    found = read_table(path, "text") if path.suffix.lower() == ".csv" else read_lines(path)
    join = lambda name: unicodedata.normalize("NFC", posixpath.normpath(f"{beneath}/{name}"))
    return {join(name).lstrip("/"): text for name, text in found.items()}


def read_lines(path: pathlib.Path) -> dict[str, str]:
    """file_name -> text ("" where a line has none), from a file of one JSON object a line; of
    several texts it is the first."""
    found = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        cause = (isinstance(error, OSError) and error.strerror) or "it is no text in UTF-8"
        raise UserError(f"{shown(str(path))} cannot be read: {cause}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError:
            row = None
        row = row if isinstance(row, dict) else {}
        name, text = row.get("file_name"), row.get("text") or ""
        text = text[0] if isinstance(text, list) else text
        if not isinstance(name, str) or not isinstance(text, str):
            raise UserError(
                f"line {number} of {path} must be a JSON object of a file and its text, "
                'as in {"file_name": "1.png", "text": "a cat"}'
            )
        found[name] = one_line(text)
    return found


def by_name(
    root: pathlib.Path, names: Sequence[str], lines: dict[str, str], called: str
) -> list[str]:
    """The text of every file; UserError where a line names a file that is not there."""
    words = [lines.get(unicodedata.normalize("NFC", name), "") for name in names]
    known = {unicodedata.normalize("NFC", name) for name in names}
    lost = [name for name in lines if name not in known]
    if lost:
        raise UserError(f"{called} names what is no image in {root}: {few(map(shown, lost))}")
    return words


def encoded(words: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(uint8 [N, 256], what to say about texts that are empty or cut)."""
    notes, lacking = [], [shown(n) for n, text in zip(names, words, strict=True) if not text]
    if lacking:
        count = f"{len(lacking)} of {len(names)} images have no caption"
        notes.append(f"{count}, which is an empty text to the network: {few(lacking)}")
    return texts.encode(words), notes + texts.cut(words)
