"""TensorBoard's event files."""

import contextlib
import os
import pathlib
import socket
import sys
import time


@contextlib.contextmanager
def without_torch():
    """tensorboardX imports torch where it is installed, for over a second, and what is used of it
    here does without."""
    apart = "torch" not in sys.modules
    if apart:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        if apart:
            sys.modules.pop("torch", None)


with without_torch():
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import RecordWriter


class Events:
    """A new file in a folder, which is made.

    Not tensorboardX's SummaryWriter: its thread dies of a full disk, and the run would wait for it
    for ever; nor its EventsWriter, which leaves its file open where that cannot be flushed."""

    def __init__(self, folder: pathlib.Path, takes_back: int | None = None):
        """takes_back: a step; the points at it and after it, which a stopped run left in the
        folder's other files, go."""
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file = RecordWriter(str(folder / name))
        self._add(takes_back or 0, file_version="brain.Event:2")
        if takes_back is not None:
            self._add(takes_back, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **what) -> None:
        self.file.write(Event(wall_time=time.time(), step=step, **what).SerializeToString())

    def scalar(self, name: str, value: float, step: int) -> None:
        self._add(step, summary=summary.scalar(name, value))

    def image(self, name: str, image, step: int) -> None:
        """image: uint8 [H, W, C]."""
        self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """All so far is on the disk when this returns."""
        self.file.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
