"""Batches on their way to the devices while these still compute."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax.core.types import PyTree


class Ahead:
    """A source's batches, several stacked for one call of the step, the next of them on its way to
    the devices.

    batches: an iterator with `get_state()`. place: arrays of NumPy [steps, b, ...] -> arrays on the
    devices."""

    def __init__(self, batches: Any, place: Callable[[PyTree], PyTree], steps_per_call: int = 1):
        self.batches, self.place, self.count = batches, place, steps_per_call
        self.state, self.ready, self.failed = None, None, None

    def prepare(self) -> None:
        """Reads and places the next batches, if none are ready. What fails is raised when they are
        taken: the step before may yet be logged and saved."""
        if self.ready is not None or self.failed is not None:
            return
        self.state = self.batches.get_state()
        try:
            read = [next(self.batches) for _ in range(self.count)]
            self.ready = self.place(jax.tree.map(lambda *a: np.stack(a), *read))
        except Exception as error:
            self.failed = error

    def take(self) -> PyTree:
        """The next batches."""
        self.prepare()
        if self.failed is not None:
            raise self.failed
        taken, self.ready = self.ready, None
        return taken

    def get_state(self) -> Any:
        """That of the source after the batches that were taken."""
        ahead = self.ready is not None or self.failed is not None
        return self.state if ahead else self.batches.get_state()
