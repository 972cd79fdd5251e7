"""Checkpoints, by orbax: written in the background, atomic, with checksums, the newest whole one
restored.

Newest means of the largest step; no clock decides anything here.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import sys
import warnings
from typing import Any

import jax
import orbax.checkpoint as ocp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import MENDED, reason, write_text, writing
from diffusion_jax.devices.processes import agreed, primary, process, wait_for_all
from diffusion_jax.training.state import TrainState


@functools.cache
def hush_abandoned_files() -> None:
    """Where one file fails orbax abandons the others; each would print a traceback of a closed
    event loop or a warning."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook


# Checksums: beside a checkpoint's files lies a list of them. It is written before orbax gives the
# folder its name, so whatever has a step's name is complete and has its list.

CHECKSUMS = "sha256.json"
LATER = (
    CHECKSUMS,
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
)  # times of day and the like, written after the list


def checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: pathlib.Path) -> None:
    """Moves a checkpoint's files from the system's memory to the disk, and lists them with their
    sizes and checksums."""
    listed = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in LATER:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            listed[name] = [path.stat().st_size, checksum(path)]
    write_text(folder / CHECKSUMS, json.dumps(listed, indent=1) + "\n")


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with a sealed checkpoint, None where it is whole or was written without
    checksums."""
    try:
        if not (folder / CHECKSUMS).exists():
            return None
        listed = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        for name, (size, expected) in listed.items():
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
            if found is None:
                return f"{name} is missing"
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
            if checksum(folder / name) != expected:
                return f"{name} has another checksum"
    except OSError as error:
        return reason(error)
    except (ValueError, TypeError, AttributeError):
        return f"{CHECKSUMS} is damaged"
    return None


def kept(state: TrainState) -> dict[str, Any]:
    """The fields of a state that a checkpoint holds: those that came later only where they hold
    something, so that a run from before they came goes on."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return {name: value for name, value in fields.items() if name != "averages" or value}


class Checkpoints:
    """The checkpoints of a workdir, each a TrainState and a dict of plain values.

    keep: how many of the newest stay; every: those of its multiples stay, too (0: none). One goes
    only when a newer one is complete. notes: what `restore` had to pass over, for the log; a
    read-only one says it itself."""

    def __init__(
        self, workdir: pathlib.Path, keep: int = 2, every: int = 0, read_only: bool = False
    ):
        """Raises UserError where the workdir cannot be written, or has none and `read_only`
        promises to write none."""
        for name in ("absl", "asyncio"):  # orbax's reports; its errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        hush_abandoned_files()
        self.workdir, self.folder = workdir, (workdir / "checkpoints").resolve()
        self.read_only, self.saving, self.failed, self.notes = read_only, 0, False, []
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} holds no checkpoint; train first")
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, lightweight_initialize=True)
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=every or None,
                cleanup_tmp_directories=True,
                lightweight_initialize=True,  # reads no times, which nothing here depends on
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            )
        with writing(workdir):
            self.manager = ocp.CheckpointManager(self.folder, options=options)

    def _seal(self) -> None:
        """Called in orbax's thread, on the first process, when all is written and before the folder
        gets its name."""
        (folder,) = self.folder.glob(f"{self.saving}.orbax-checkpoint-tmp*")
        seal(folder)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: TrainState, extra: dict, wait: bool = False) -> None:
        """Saves under the state's step, unless that one is there. extra: what JSON holds.

        Raises UserError where this one, or the one before, which was written meanwhile, cannot be
        saved."""
        step = int(state.step)
        self._finish(wait=True)  # the one before
        if step not in self.manager.all_steps():
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(kept(state)), extra=ocp.args.JsonSave(extra)
            )
            self.saving = step
            self._finish(wait, lambda: self.manager.save(step, args=args, force=True))

    def _finish(self, wait: bool, start=lambda: None) -> None:
        """`start` and, on request, the end of what it starts; failures of either as UserError."""
        try:
            start()
            if wait:
                self.manager.wait_until_finished()
        except Exception as error:  # orbax and tensorstore each have their own
            if self.failed:  # said already
                return
            self.failed = True
            whole = [int(path.name) for path in self.folder.glob("*") if path.name.isdigit()]
            last = (
                f"the last one is that of step {max(whole)}, and {MENDED}"
                if whole
                else "there is none yet"
            )
            raise UserError(
                f"the checkpoint of step {self.saving} cannot be written to {self.folder}: "
                f"{reason(error)}; {last}"
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest whole checkpoint, in the shapes and types of `like`, where `like` says, else
        on the first device.

        Damaged ones are passed over, with a note each, and moved to the workdir's folder `damaged`,
        unless read-only. Raises UserError where none is whole. Of several processes the first one
        looks for damage."""
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or here),
            kept(like),
        )
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
        )
        bad: dict[int, str] = {}
        while True:
            self.manager.reload()  # a run that trains meanwhile adds and removes some
            steps = [step for step in self.manager.all_steps() if step not in bad]
            steps = [step] if (step := agreed(max(steps, default=-1))) >= 0 else []
            if not steps and bad:
                found = "; ".join(f"step {step}: {why}" for step, why in bad.items())[:400]
                raise UserError(
                    f"no checkpoint in {self.folder} is whole ({found}); bring one back from a "
                    "copy, or move them all away "
                    "to start again"
                )
            if not steps:
                raise UserError(f"no checkpoint in {self.folder}; train first")
            why = damage(self.folder / str(step)) if primary() else None
            if agreed(why is None):
                try:
                    restored = self.manager.restore(step, args=args)
                except Exception as error:  # orbax, tensorstore and JSON each have their own
                    why = f"it cannot be read ({reason(error)})"
                    sealed = (self.folder / str(step) / CHECKSUMS).exists()  # so it is not damage
                    if sealed or process()[1] > 1:
                        raise UserError(
                            f"the checkpoint {self.folder / str(step)} is whole, but {why}"
                        ) from error
                else:
                    self._pass_over(bad, step)
                    return like.replace(**restored["state"]), restored["extra"]
            bad[step] = why or "process 0 says how"

    def _pass_over(self, bad: dict[int, str], step: int) -> None:
        """Says which checkpoints were damaged, and moves them out of the way of new ones."""
        for number, why in bad.items():
            folder, where = self.folder / str(number), ""
            if not folder.exists():  # a run that trains meanwhile removed it
                continue
            if not self.read_only and primary():
                target = aside = self.workdir / "damaged" / str(number)
                for again in range(1, 1000):
                    if not aside.exists():
                        break
                    aside = target.with_name(f"{number}.{again}")
                with writing(self.workdir):
                    aside.parent.mkdir(exist_ok=True)
                    os.replace(folder, aside)
                where = f", was moved to {aside}"
            note = (
                f"the checkpoint of step {number} is damaged ({why}){where}; "
                f"that of step {step} is used"
            )
            self.notes.append(note)
            if self.read_only:
                print(f"note: {note}", file=sys.stderr)
        if bad:
            wait_for_all("damaged")
            self.manager.reload()

    def close(self) -> None:
        self._finish(wait=True)
        with contextlib.suppress(Exception) if self.failed else contextlib.nullcontext():
            self.manager.close()
