"""What a run declares of its data, and what a source says of itself."""

from typing import NamedTuple, NewType

import numpy as np


class Declared(NamedTuple):
    """What a config says of its data: config.data.shape, .num_classes and .source.range.

    shape: of one example, such as (H, W, C). num_classes: number of labels, 0 where there are none.
    range: the least and the largest value of data that are floats; None for 8-bit data and for
    floats that come without one. dtype: what the modality says that an example is."""

    shape: tuple[int, ...]
    num_classes: int = 0
    range: tuple[float, float] | None = None
    dtype: str = "uint8"


Spec = NewType("Spec", tuple)
"""((name, (shape, dtype)), ...) of the entries of a source's examples."""


def spec_of(source) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape, dtype) of what a source yields, read from its first example."""
    example = {name: np.asarray(value) for name, value in source[0].items()}
    return {name: (value.shape, value.dtype) for name, value in example.items()}
