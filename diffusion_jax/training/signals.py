"""Signals that ask a run to stop."""

import os
import signal

from diffusion_jax.devices.processes import process


class Signals:
    """Within it, SIGTERM and Ctrl-C set `number` instead of ending the program; a second one ends
    it."""

    number = 0

    def __enter__(self):
        alone = (
            process()[1] == 1
        )  # else JAX listens to SIGTERM, and `preempted` tells all processes alike

        def handler(number, frame):
            if alone:
                self.number = number
            else:
                os.kill(os.getpid(), signal.SIGTERM)
            signal.signal(number, self.before[number])

        numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
        self.before = {number: signal.signal(number, handler) for number in numbers}
        return self

    def __exit__(self, *exception):
        for number, before in self.before.items():
            signal.signal(number, before)
