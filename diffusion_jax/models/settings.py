"""Checks of the networks' settings."""

import math


def positive(**values: float) -> None:
    """Raises ValueError for a number that is not above 0, or not finite, naming it."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")
        if value <= 0:
            raise ValueError(f"{name} must be above 0, not {value}")
