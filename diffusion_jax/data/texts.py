"""Texts as arrays: UTF-8 bytes, of one length in all examples of a source."""

from collections.abc import Sequence

import numpy as np

LENGTH = 256  # bytes


def encode(texts: Sequence[str], length: int = LENGTH) -> np.ndarray:
    """uint8 [N, length]: each text in UTF-8, then zeros.

    A longer one is cut between two characters; a character 0 becomes a space."""
    rows = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        data = text.replace("\0", " ").encode()[:length].decode(errors="ignore").encode()
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return rows


def cut(texts: Sequence[str], length: int = LENGTH) -> list[str]:
    """What to say about texts that `encode` cuts; nothing where it cuts none."""
    count = sum(len(text.encode()) > length for text in texts)
    return [f"{count} of {len(texts)} texts are cut at {length} bytes"] if count else []


def decode(row: np.ndarray) -> str:
    """The text of a row [length] of `encode`."""
    return bytes(np.asarray(row, np.uint8)).rstrip(b"\0").decode()


def check(source) -> None:
    """Raises ValueError where a source's examples have no texts as `encode` writes them."""
    example = {name: np.asarray(value) for name, value in source[0].items()}
    if "text" not in example:
        raise ValueError(f"the data have no entry 'text'; they have {', '.join(sorted(example))}")
    found = example["text"]
    if found.dtype != np.uint8 or found.ndim != 1:
        raise ValueError(
            f"the data's entry 'text' is {found.dtype} {found.shape}, not a text; "
            "config.conditioning=given takes it as it is"
        )


def of(source) -> np.ndarray:
    """The texts of all examples of a source, uint8 [N, length]: its `texts` where it has them."""
    known = getattr(source, "texts", None)
    if known is None and getattr(source, "others", None):
        known = source.others["text"][source.chosen]
    return np.stack([source[i]["text"] for i in range(len(source))]) if known is None else known
