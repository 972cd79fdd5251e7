"""The noun of a modality."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Modality(NamedTuple):
    """What an example is: its name in a batch, its shape, and how samples of it are kept and shown.

    entry: its name in a batch, such as "image". dtype: of one example, unless the data are floats
    with a range. check: (shape) -> None, or ValueError for a shape that no example has. save:
    (folder, data [N, ...], labels [N] or None, range) -> None; writes samples.npz, with the data in
    their own units, and one file a sample. preview: (data [N, ...], classes, range) -> one picture,
    uint8 [H, W, C], or None where there is none; classes: how many labels the samples have in turn,
    0 where they have none. range: the least and the largest value of data that are floats; None
    where they are not. features: the name of what samples are compared by.
    """

    entry: str
    dtype: np.dtype
    check: Callable[[tuple[int, ...]], None]
    save: Callable[..., None]
    preview: Callable[..., np.ndarray | None]
    features: str = ""


def write_samples(
    folder: pathlib.Path, name: str, data: np.ndarray, labels: np.ndarray | None
) -> None:
    """folder/samples.npz: the data under their name and, where there are any, `labels` [N]."""
    arrays: dict[str, Any] = {name: data} | ({} if labels is None else {"labels": labels})
    np.savez(folder / "samples.npz", **arrays)
