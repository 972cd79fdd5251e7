"""What a run writes for people and programs: log.txt, metrics.jsonl, TensorBoard events, the
progress bar."""

import contextlib
import json
import math
import os
import pathlib
import sys
import time

import tqdm

from diffusion_jax.core.files import write_text
from diffusion_jax.training.events import Events


class RunLog:
    """The records of a workdir. On resumption, whatever lies beyond the restored step is taken
    back."""

    def __init__(
        self,
        workdir: pathlib.Path,
        step: int,
        num_steps: int,
        batch_size: int,
        silent: bool = False,
    ):
        """silent: writes and says nothing, on the processes of a run but the first."""
        self.silent, self.batch_size = silent, batch_size
        metrics, text = (
            pathlib.Path(os.devnull) if silent else workdir / name
            for name in ("metrics.jsonl", "log.txt")
        )
        if not silent:
            kept = [line for line in read_metrics(workdir) if line["step"] <= step]
            write_text(metrics, "".join(json.dumps(line) + "\n" for line in kept))
        with contextlib.ExitStack() as opened:
            self.metrics, self.text = (
                opened.enter_context(path.open("a", buffering=1, encoding="utf-8"))
                for path in (metrics, text)
            )
            self.events = (
                None
                if silent
                else opened.enter_context(Events(workdir / "tensorboard", takes_back=step + 1))
            )
            self.opened = opened.pop_all()
        interval = 0.2 if sys.stderr.isatty() else 10.0
        self.bar = tqdm.tqdm(
            total=num_steps,
            initial=step,
            unit="step",
            mininterval=interval,
            dynamic_ncols=True,
            disable=silent,
        )
        self.restart_clock(step)

    def say(self, message: str) -> None:
        """A line for the screen and for log.txt."""
        if not self.silent:
            tqdm.tqdm.write(message, file=sys.stdout)
        self.text.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n")

    def restart_clock(self, step: int) -> None:
        """Begins the time of images/s and `outside_step` anew, with the steps after this one."""
        self.clock, self.clock_step, self.in_steps = time.perf_counter(), step, 0.0

    @contextlib.contextmanager
    def in_step(self):
        """Within it the host starts a step or waits for one; the rest of the time is logged as the
        share `outside_step`, also where it passes while a device computes, as the reading of the
        next batch does. A run waits for its host where that share leaves nothing to wait for."""
        started = time.perf_counter()
        yield
        self.in_steps += time.perf_counter() - started

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """A line of metrics.jsonl and a point of each TensorBoard curve; NaN, an empty quartile, is
        left out."""
        metrics = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        self.metrics.write(json.dumps({"step": step, **metrics}) + "\n")
        if self.events:
            for name, value in metrics.items():
                self.events.scalar(name, value, step)

    def write_training(self, step: int, metrics: dict[str, float], learning_rate: float) -> None:
        """As `write`, with the learning rate and, of the steps since `restart_clock`, the speed,
        which the bar shows, too."""
        metrics, shown = {**metrics, "learning_rate": learning_rate}, f"loss {metrics['loss']:.4f}"
        if steps := step - self.clock_step:
            seconds = time.perf_counter() - self.clock
            speed = steps * self.batch_size / seconds
            metrics |= {"images_per_second": speed, "outside_step": 1.0 - self.in_steps / seconds}
            shown += f", {speed:.0f} images/s"
        self.write(step, metrics)
        self.bar.set_postfix_str(shown, refresh=False)
        self.restart_clock(step)

    def picture(self, name: str, image, step: int) -> None:
        """image: uint8 [H, W, C]."""
        if self.events:
            self.events.image(name, image, step)

    def flush(self) -> None:
        """All so far is on the disk when this returns, so that a checkpoint is never ahead of
        it."""
        for file in () if self.silent else (self.metrics, self.text):
            file.flush()
            os.fsync(file.fileno())
        if self.events:
            self.events.flush()

    def close(self) -> None:
        """Whatever cannot be written was reported by the write or by `flush`."""
        self.bar.close()
        with contextlib.suppress(OSError):
            self.opened.close()


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl; one that a killed run left half written is passed over."""
    path = workdir / "metrics.jsonl"
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines
