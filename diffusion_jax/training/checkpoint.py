"""Checkpoints, by orbax: written in the background, atomic, the newest restored."""

import logging
import os
import pathlib

import jax
import orbax.checkpoint as ocp

from diffusion_jax.config import Config, differences, load, to_json
from diffusion_jax.errors import UserError
from diffusion_jax.training.state import TrainState


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def check_workdir(workdir: pathlib.Path, config: Config) -> None:
    """Raises UserError where the folder is another experiment's or no run's. What `data` wrote before the run may lie there."""
    stored = workdir / "config.json"
    if stored.exists():
        changed = differences(load(stored), config)
        if changed:
            raise UserError(f"{workdir} holds a run with other settings ({'; '.join(changed)}); choose another --workdir")
        saved = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
        if saved and max(saved) % config.training.steps_per_call:
            raise UserError(
                f"{workdir} goes on at step {max(saved)}, which is no multiple of "
                f"training.steps_per_call={config.training.steps_per_call}; use a divisor of it"
            )
    elif workdir.is_dir() and any(path.name != "data" for path in workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and holds no run of this program; choose another --workdir")


def open_workdir(workdir: pathlib.Path, config: Config) -> None:
    """Makes the folder of a run, or enters it again; UserError as of `check_workdir`, and where it cannot be written."""
    check_workdir(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_text(workdir / "config.json", to_json(config))
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be written: {error.strerror or error}") from None


class Checkpoints:
    """The checkpoints of a workdir, each a TrainState and a dict of plain values."""

    def __init__(self, workdir: pathlib.Path, keep: int = 2, read_only: bool = False):
        """Raises UserError where the workdir has none and `read_only` promises to write none."""
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax's reports of its own progress
        self.folder = (workdir / "checkpoints").resolve()
        if read_only and not self.folder.is_dir():
            raise UserError(f"{workdir} holds no checkpoint; train first")
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def save(self, state: TrainState, extra: dict, wait: bool = False) -> None:
        """Saves under the state's step, unless that one is there. extra: what JSON holds."""
        step = int(state.step)
        if step not in self.manager.all_steps():
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra))
            self.manager.save(step, args=args)
        if wait:
            self.manager.wait_until_finished()

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest checkpoint, in the shapes and types of `like`, where `like` says, else on the first device.

        Raises UserError where it is damaged.
        """
        step = self.latest()
        if step is None:
            raise UserError(f"no checkpoint in {self.folder}; train first")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding or here), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore())
        try:
            restored = self.manager.restore(step, args=args)
        except Exception as error:  # orbax, tensorstore and JSON each have their own
            earlier = [s for s in self.manager.all_steps() if s < step]
            way_out = f"to go on from step {max(earlier)}" if earlier else "to start again"
            cause = " ".join(str(error).split())[:160]
            raise UserError(
                f"the checkpoint {self.folder / str(step)} cannot be read; move that folder away {way_out} ({cause})"
            ) from error
        return restored["state"], restored["extra"]

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()
