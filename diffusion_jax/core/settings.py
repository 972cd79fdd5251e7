"""Settings, the arguments of a registry's factories: marks of what a change of one means for a
run, and the checks of ranges.

`Annotated[bool, FREE]` in a factory's signature, beside the setting itself. A check raises
ValueError with one line that names the setting, its range and its value.
"""

import math
from typing import NamedTuple


class Mark(NamedTuple):
    """free: it may change between two starts in one workdir. network: it makes another network."""

    free: bool = False
    network: bool = True


FREE = Mark(free=True, network=False)
TRAINING = Mark(network=False)


def finite(**values: float) -> None:
    """Raises ValueError unless every value is finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")


def above(bound: float, **values: float) -> None:
    """Raises ValueError unless every value is finite and above the bound."""
    finite(**values)
    for name, value in values.items():
        if not bound < value:
            raise ValueError(f"{name} must be above {bound:g}, not {value}")


def at_least(bound: float, **values: float) -> None:
    """Raises ValueError unless every value is finite and at least the bound."""
    finite(**values)
    for name, value in values.items():
        if not bound <= value:
            raise ValueError(f"{name} must be at least {bound:g}, not {value}")


def inside(low: float, high: float, **values: float) -> None:
    """Raises ValueError unless every value lies in [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name} must lie in [{low:g}, {high:g}], not {value}")


def check_dropout(dropout: float) -> None:
    """Raises ValueError unless the share that is left out lies in [0, 1)."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")


def one_of(names: tuple[str, ...], **values: str) -> None:
    """Raises ValueError unless every value is one of the names."""
    for name, value in values.items():
        if value not in names:
            raise ValueError(f"{name} is one of {', '.join(names)}, not {value!r}")
