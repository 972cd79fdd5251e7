"""Metrics that the host has not read yet, so that no step waits for it."""

from typing import Any

import jax
import numpy as np

MOST = 256  # calls of the step whose metrics are read together where none is logged


class NotFinite(Exception):
    """The first step whose loss or gradient was not finite."""


class Unread:
    """Metrics, arrays [steps_per_call] on the devices, of the steps since they were last read.

    All of them are kept until a step is logged, so that the first one that was not finite is found
    without reading any in between."""

    def __init__(self, log_every: int):
        self.log_every, self.steps = log_every, []

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """metrics: of the steps up to `step`."""
        self.steps.append((step, metrics))

    @property
    def due(self) -> bool:
        """Whether they are to be read, once the next step is begun."""
        if not self.steps:
            return False
        return self.steps[-1][0] % self.log_every == 0 or len(self.steps) >= MOST

    def wait(self) -> None:
        """For the step before last, so that the devices have one to do and one to come, and no
        more."""
        if len(self.steps) > 2:
            jax.block_until_ready(self.steps[-3][1])

    def read(self) -> dict[str, float]:
        """The metrics of the last step where it is logged, else {}; none are unread afterwards.

        Raises NotFinite, with a line that names the step, where one's loss or gradient is not."""
        steps, found = zip(*jax.device_get(self.steps), strict=True)
        self.steps = []
        for step, metrics in zip(steps, found, strict=True):
            for name in ("loss", "grad_norm"):
                values = np.asarray(metrics[name])
                if not np.isfinite(values).all():
                    place = int(np.argmin(np.isfinite(values)))
                    at = step - len(values) + 1 + place
                    raise NotFinite(f"step {at}: {name} is {values[place]}")
        if steps[-1] % self.log_every:
            return {}
        return {name: float(values[-1]) for name, values in found[-1].items()}
