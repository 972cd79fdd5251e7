"""The folder of a run: its name, whether it may be entered, and its lock."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import filelock
import jax
import pytest
from tiny import ROOT, environment, mlp_config, tiny_config

from diffusion_jax.commands import train as loop
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.settings import load
from diffusion_jax.runs.workdir import check_workdir, lock, open_workdir, workdir_path


def test_a_home_folder_is_meant_by_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir_path("~/run") == tmp_path / "run"
    assert workdir_path("runs/~digits") == pathlib.Path("runs/~digits")
    root = pytest.importorskip("pwd").getpwuid(0)
    assert workdir_path(f"~{root.pw_name}/run") == pathlib.Path(root.pw_dir) / "run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gs://bucket/run", "--workdir=gs://bucket/run is an address, which is not supported yet"),
        ("s3://bucket", "not supported yet"),
        ("file:///tmp/run", "use a folder of this machine"),
        ("~nobody.of.this.name/run", "~nobody.of.this.name has no home folder"),
        ("", "--workdir is missing"),
    ],
)
def test_what_is_no_folder_of_this_machine_is_refused_in_one_line(text, message):
    with pytest.raises(UserError) as error:
        workdir_path(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["C:/runs/digits", "a:b/c", "runs//digits", "/tmp/a+b://c"])
def test_what_resembles_an_address_is_a_folder(text):
    assert workdir_path(text) == pathlib.Path(text)


HOLDS = """
import pathlib, sys, time
from diffusion_jax.runs.workdir import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def held(tmp_path):
    """(workdir, the other process, which holds its lock), with a checkpoint under way."""
    workdir = tmp_path / "run"
    (workdir / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir(parents=True)
    (workdir / "config.json").write_text("{}")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(workdir)],
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield workdir, other
    finally:
        other.kill()
        other.communicate()


def times(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


def test_a_second_process_is_told_who_trains_there_until_the_first_is_killed(held):
    workdir, other = held
    before = times(workdir)
    with pytest.raises(UserError) as error:
        loop.train(mlp_config(), workdir)
    holder = json.loads((workdir / ".lock.json").read_text())
    assert holder["pid"] == other.pid
    start = f"{workdir} is in use: process {other.pid} on {os.uname().nodename} has been training"
    assert str(error.value).startswith(start)
    assert holder["since"] in str(error.value)
    assert "\n" not in str(error.value)
    assert times(workdir) == before  # the checkpoint under way, too

    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (workdir / ".lock.json").exists()  # of the dead one: it says nothing any more
    with lock(workdir):
        assert json.loads((workdir / ".lock.json").read_text())["pid"] == os.getpid()
    assert not list(workdir.glob(".lock*"))


@pytest.mark.parametrize("text", ["", "[1]", '{"pid": 3}'])
def test_an_unreadable_holder_is_another_process(tmp_path, text):
    with lock(tmp_path):
        (tmp_path / ".lock.json").write_text(text)
        with pytest.raises(UserError, match="in use: another process"), lock(tmp_path):
            pass


def test_training_holds_the_lock_from_first_to_last(tmp_path, monkeypatch):
    seen = []

    def begin(config, workdir):
        with pytest.raises(UserError, match=f"in use: process {os.getpid()}"), lock(workdir):
            pass
        seen.append(workdir)
        raise UserError("enough")

    monkeypatch.setattr(loop, "begin", begin)
    with pytest.raises(UserError, match="enough"):
        loop.train(mlp_config(), tmp_path / "new" / "run")
    assert seen == [tmp_path / "new" / "run"]
    assert not (tmp_path / "new").exists()  # bad input leaves no trace


def test_of_several_processes_of_one_run_the_first_holds_it(tmp_path, monkeypatch):
    with lock(tmp_path):
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with lock(tmp_path):
            assert (tmp_path / ".lock.json").exists()
        assert (tmp_path / ".lock.json").exists()
        monkeypatch.undo()


def test_where_there_are_no_locks_a_note_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with lock(tmp_path):
        pass
    out = capsys.readouterr().out
    assert out.startswith(f"note: {tmp_path} cannot be locked (")
    assert os.strerror(errno.ENOLCK) in out
    assert out.count("\n") == 1


def test_what_a_killed_start_leaves_does_not_keep_the_next_one_out(tmp_path):
    for name in (".lock", ".lock.json", ".lock.json.partial", "data"):
        (tmp_path / name).touch()
    check_workdir(tmp_path, tiny_config())
    (tmp_path / ".locks").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        check_workdir(tmp_path, tiny_config())


def test_a_workdir_of_another_experiment_is_refused_with_the_fields(tmp_path):
    config = tiny_config()
    open_workdir(tmp_path / "run", config)
    assert load(tmp_path / "run" / "config.json") == config
    config.training.num_steps, config.sampling.num = 99, 7  # how long and what to draw may change
    open_workdir(tmp_path / "run", config)
    assert load(tmp_path / "run" / "config.json") == config
    config.model.channels, config.seed = 32, 5
    with pytest.raises(UserError, match="seed: 0 -> 5; model.channels: 16 -> 32"):
        open_workdir(tmp_path / "run", config)
    assert load(tmp_path / "run" / "config.json").model.channels == 16


def test_a_longer_run_is_another_experiment_where_the_learning_rate_depends_on_its_length(tmp_path):
    config = tiny_config(decay="cosine")
    open_workdir(tmp_path / "run", config)
    config.training.num_steps = 99
    with pytest.raises(UserError, match="training.num_steps: 8 -> 99"):
        open_workdir(tmp_path / "run", config)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        open_workdir(tmp_path, tiny_config())
    with pytest.raises(UserError, match="cannot be written"):
        open_workdir(tmp_path / "thesis.tex" / "run", tiny_config())
