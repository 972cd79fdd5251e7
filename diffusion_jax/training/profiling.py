"""A profile of a few steps, as XProf and TensorBoard show it."""

import contextlib
import pathlib
import re

import jax

from diffusion_jax.core.errors import UserError


def parse_steps(text: str) -> tuple[int, int] | None:
    """The first and the last step of training.profile_steps, None where it is empty."""
    found = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", text)
    if text and not (found and 1 <= int(found[1]) <= int(found[2])):
        raise UserError(
            "config.training.profile_steps must be the first and the last step, "
            f'as in "10:15", not {text!r}'
        )
    return (int(found[1]), int(found[2])) if found else None


class Profile:
    """Traces the steps first to last, counted as metrics.jsonl counts them, into a folder; nothing
    else waits for it.

    A dispatch of several steps is traced as a whole. A run that begins between the two steps is
    traced from its start, one that ends there to its end; one that begins later is not traced."""

    def __init__(self, text: str, folder: pathlib.Path):
        self.steps, self.folder, self.running = parse_steps(text), folder, False

    def begin(self, step: int, count: int = 1) -> contextlib.AbstractContextManager:
        """To be entered round the dispatch of the steps step + 1 ... step + count, and the
        reading of their data where it was not done ahead."""
        if (
            self.steps
            and not self.running
            and step < self.steps[1]
            and step + count >= self.steps[0]
        ):
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = (
                0  # it would slow the host, whose share in the time is of interest
            )
            jax.profiler.start_trace(str(self.folder), profiler_options=options)
            self.running = True
        return (
            jax.profiler.StepTraceAnnotation("train", step_num=step + 1)
            if self.running
            else contextlib.nullcontext()
        )

    def end(self, step: int, metrics) -> bool:
        """After the dispatch of the step; metrics: its result, for which the last traced step is
        waited. Whether it ended."""
        if not (self.running and self.steps and step >= self.steps[1]):
            return False
        jax.block_until_ready(metrics)
        self.close()
        return True

    def close(self) -> None:
        """Writes what was traced, also of a run that ends early."""
        if self.running:
            self.running = False
            self.steps = None
            jax.profiler.stop_trace()
