"""The folder of a run: how it is named, what may lie in it, and who trains in it."""

import contextlib
import datetime
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterator

import filelock

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import reason, write_text
from diffusion_jax.devices.processes import primary
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.settings import differences, load, to_json

LOCK, HOLDER = ".lock", ".lock.json"  # the file that is locked, and who has locked it
OF_THE_LOCK = (LOCK, HOLDER, f"{HOLDER}.partial")


def workdir_path(text: str, field: str = "--workdir") -> pathlib.Path:
    """The path of a folder as a person writes it, with ~ and ~user; UserError, which names the
    field, where it is none."""
    if not text:
        raise UserError(f"{field} is missing: the folder of the run, as in --workdir runs/digits")
    if re.match(r"[A-Za-z][\w+.-]*://", text):
        raise UserError(
            f"{field}={text} is an address, which is not supported yet; use a folder of this "
            "machine, into which a bucket can be mounted"
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        name = pathlib.Path(text).parts[0]
        raise UserError(f"{field}={text}: {name} has no home folder; give the whole path") from None


def check_step(workdir: pathlib.Path, step: int, config: Config) -> None:
    """Raises UserError where a run cannot go on from a step with this config's steps_per_call."""
    if step % config.training.steps_per_call:
        raise UserError(
            f"{workdir} goes on at step {step}, which is no multiple of "
            f"training.steps_per_call={config.training.steps_per_call}; use a divisor of it"
        )


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
    """Raises UserError where the folder is another experiment's or no run's. What `data` wrote
    before the run may lie there."""
    stored = workdir / "config.json"
    if stored.exists():
        theirs = load(stored)
        if not theirs.training.init_sha256:  # begun before it was recorded
            theirs.training.init_sha256 = config.training.init_sha256
        changed = differences(theirs, config)
        if changed:
            raise UserError(
                f"{workdir} holds a run with other settings ({'; '.join(changed)}); "
                "choose another --workdir"
            )
        names = [path.name for path in (workdir / "checkpoints").glob("*")]
        saved = [int(name) for name in names if name.isdigit()]
        if saved:
            check_step(workdir, max(saved), config)
    elif workdir.is_dir() and {path.name for path in workdir.iterdir()} - {"data", *OF_THE_LOCK}:
        raise UserError(
            f"{workdir} is not empty and holds no run of this program; choose another --workdir"
        )


def open_workdir(workdir: pathlib.Path, config: Config) -> None:
    """Makes the folder of a run, or enters it again; UserError as of `check_workdir`, and where it
    cannot be written."""
    check_workdir(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "config.json", to_json(config))
    except OSError as error:
        raise UserError(
            f"the workdir {workdir} cannot be written: {error.strerror or error}"
        ) from None


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Within it, no other process trains in the workdir; of a run of several processes, the first
    one holds the lock.

    The operating system holds it, so it goes with a process that is killed. Raises UserError, which
    names the holder, where another process has it, and then nothing was touched. Where the folder
    cannot be locked, a note says so. A folder that was made for the lock alone goes with it."""
    if not primary():
        yield
        return
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    held = filelock.FileLock(workdir / LOCK, blocking=False, fallback_to_soft=False)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        held.acquire()
        write_holder(workdir)
    except filelock.Timeout:
        raise UserError(in_use(workdir)) from None
    except OSError as error:
        if workdir.is_dir() or not workdir.exists():  # a file is named by whoever opens the folder
            print(
                f"note: {workdir} cannot be locked ({reason(error)}); "
                "take care that no other process trains in it",
                flush=True,
            )
    try:
        yield
    finally:
        release(workdir, held, made)


def write_holder(workdir: pathlib.Path) -> None:
    """Leaves beside the lock who holds it; what keeps it from being written does not matter."""
    now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
    with contextlib.suppress(OSError):
        write_text(workdir / HOLDER, json.dumps(holder) + "\n")


def in_use(workdir: pathlib.Path) -> str:
    """What is said to a second process."""
    try:
        holder = json.loads((workdir / HOLDER).read_text())
        who = "process {pid} on {host} has been training in it since {since}".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process trains in it"
    return f"{workdir} is in use: {who}; stop that one first, or choose another --workdir"


def release(workdir: pathlib.Path, held: filelock.BaseFileLock, made: list[pathlib.Path]) -> None:
    """Takes the lock's files away before the lock, and of the folders made those that are empty."""
    if held.is_locked:
        for name in OF_THE_LOCK:
            with contextlib.suppress(OSError):
                (workdir / name).unlink()
        held.release()
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()
