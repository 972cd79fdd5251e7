"""What a run declares of its data, and what a source says of itself."""

from typing import NamedTuple

import numpy as np


class Declared(NamedTuple):
    """What config.data.shape and config.data.num_classes say.

    shape: of one example of what the diffusion models, such as (H, W, C). num_classes: number of
    labels, 0 where there are none.
    """

    shape: tuple[int, ...]
    num_classes: int = 0


def spec_of(source) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Name -> (shape, dtype) of what a source yields, read from its first example."""
    example = {name: np.asarray(value) for name, value in source[0].items()}
    return {name: (value.shape, value.dtype) for name, value in example.items()}
