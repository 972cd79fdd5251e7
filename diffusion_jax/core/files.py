"""Files and folders of a run, written whole or not at all; what keeps them from being written."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from diffusion_jax.core.errors import UserError

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # which only writing meets
MENDED = "the same command goes on from there once that is mended"


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all, also where the machine stops."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """Turns what keeps a run from writing into its folder, as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        within = pathlib.Path(os.path.abspath(str(error.filename))).is_relative_to(
            os.path.abspath(folder)
        )
        if error.errno not in CANNOT_WRITE and not (error.filename and within):
            raise
        raise UserError(
            f"{folder} cannot be written: {reason(error)}; the last checkpoint is whole, {MENDED}"
        ) from error


def reason(error: BaseException) -> str:
    """What went wrong, in a few words of one line: the system's own where a message holds them."""
    text = " ".join(str(error).split())
    known = (
        os.strerror(number) for number in (*CANNOT_WRITE, errno.EACCES, errno.EPERM, errno.EIO)
    )
    return next((words for words in known if words in text), text[:160] or type(error).__name__)


def make_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder, made where it is not; UserError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


def new_folder(parent: pathlib.Path, name: str) -> pathlib.Path:
    """parent/name, or parent/name-2, -3, ... where it exists: nothing is overwritten."""
    number, folder = 1, parent / name
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return make_folder(folder)
