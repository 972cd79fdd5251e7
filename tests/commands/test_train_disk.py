"""Runs whose disk is full or read-only: one line, no file left open, and later they go on."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
from tiny import ROOT, assert_same_run, environment, experiment_file, final_state, mlp_config

from diffusion_jax.commands import train
from diffusion_jax.core.errors import UserError
from diffusion_jax.training.checkpoint import Checkpoints

NO_SPACE = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without space"
)


@NO_SPACE
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Pillow's file, with its buffer
@pytest.mark.parametrize("name", ["samples/step_0000008.png.partial", "plots/losses.png"])
def test_a_picture_without_space_stops_the_run_with_one_line(undisturbed, tmp_path, name):
    config, reference = undisturbed
    shutil.copytree(reference, tmp_path / "run")
    (
        tmp_path / "run" / "samples" / "step_0000008.png"
    ).unlink()  # as of a run killed before its last picture
    (tmp_path / "run" / "plots" / "losses.png").unlink()
    (tmp_path / "run" / name).symlink_to("/dev/full")
    with pytest.raises(
        UserError,
        match=r"run cannot be written: No space left on device; the last checkpoint is whole",
    ):
        train.train(config, tmp_path / "run")
    assert int(final_state(config, tmp_path / "run")[0].step) == 8
    (tmp_path / "run" / name).unlink(missing_ok=True)
    train.train(config, tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


LIMITED = """
import resource, sys
from diffusion_jax.commands import train
train.draw_picture = train.plots.schedule = lambda *arguments: None
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * ({largest_file},))
import main

sys.exit(main.main())
"""


def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_one_line(
    undisturbed, tmp_path, no_pictures
):
    """In orbax's thread, by a limit on the size of files, which needs no rights; and the run goes
    on when there is space. The limit is below every checkpoint's description of its arrays, as
    its files of numbers are cut differently each time; no other file of the run is as large."""
    arguments = ("--workdir", tmp_path / "run", "--config", experiment_file(tmp_path, "mlp_config"))
    shutil.copytree(undisturbed[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    described = (tmp_path / "run" / "checkpoints" / "4" / "state" / "_METADATA").stat().st_size
    stopped = subprocess.run(
        [sys.executable, "-c", LIMITED.format(largest_file=described * 3 // 4), *arguments],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert stopped.returncode == 2, stopped.stderr[-2000:]
    line = stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    assert line.startswith("error: the checkpoint of step 8 cannot be written to ")
    assert (
        ": File too large; the last one is that of step 4, and the same command goes on from there"
        in line
    )
    train.train(mlp_config(), tmp_path / "run")
    assert "resuming at step 4" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB, and a function that changes its options."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = lambda *options: subprocess.run(
        ["mount", *options, str(disk)], capture_output=True, text=True
    )
    if sys.platform != "linux" or mount("-t", "tmpfs", "-o", "size=1m", "tmpfs").returncode:
        pytest.skip("mounting a small disk needs Linux and root's rights")
    yield disk, lambda options: mount("-o", f"remount,{options}").check_returncode()
    left_open = open_files(disk)
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    assert left_open == []


def open_files(folder):
    """The files below the folder that this process holds open, by Linux's list of them."""
    files = (pathlib.Path("/proc/self/fd", number) for number in os.listdir("/proc/self/fd"))
    return [
        str(file.readlink())
        for file in files
        if file.is_symlink() and str(folder) in str(file.readlink())
    ]


@pytest.mark.parametrize("size, begun", [("44k", False), ("160k", True)])
def test_a_run_that_cannot_write_leaves_no_file_open(small_disk, size, begun):
    """Full before the log's first line, and after it."""
    disk, remount = small_disk
    remount(f"size={size}")
    with pytest.raises(UserError, match=r"cannot be written.*: No space left on device"):
        train.train(mlp_config(), disk / "run")
    assert open_files(disk) == []
    assert ("starting" in (disk / "run" / "log.txt").read_text()) == begun


def test_a_profile_that_cannot_be_written_leaves_no_file_open(tmp_path, monkeypatch, no_pictures):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "profile"))

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **options: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        train.train(mlp_config(profile_steps="1:99", num_steps=3), tmp_path / "run")
    assert open_files(tmp_path) == []


def test_a_small_disk(undisturbed, small_disk, tmp_path):
    """Full during a save, then with space again, then read-only."""
    disk, remount = small_disk
    config = mlp_config()
    with pytest.raises(UserError, match=r"No space left on device") as error:
        train.train(config, disk / "run")
    assert "\n" not in str(error.value)
    assert open_files(disk) == []
    kept = Checkpoints(disk / "run", read_only=True).latest()
    remount("size=64m")
    train.train(config, disk / "run")
    assert_same_run(undisturbed, disk / "run")
    assert ("starting" if kept is None else f"resuming at step {kept}") in (
        disk / "run" / "log.txt"
    ).read_text().splitlines()[-2]
    remount("ro")
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        train.train(mlp_config(num_steps=12), disk / "run")
    assert int(final_state(config, disk / "run")[0].step) == 8
