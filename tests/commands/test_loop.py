"""Whole runs: that a resumed one is the same run, whatever ended it."""

import contextlib
import errno
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tensorboardX.record_writer import RecordWriter
from tiny import command, curves, environment, experiment_file, pixels, run_command, tiny_config

from diffusion_jax.commands import sample as generate
from diffusion_jax.commands import train as loop
from diffusion_jax.core.errors import Interrupted, UserError
from diffusion_jax.core.files import writing
from diffusion_jax.data import pipeline, sources
from diffusion_jax.runs.build import build
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.logging import RunLog, read_metrics
from diffusion_jax.training.profiling import Profile


def final_state(config, workdir):
    like = jax.eval_shape(build(config).init_state, jax.random.key(0))
    return Checkpoints(workdir, read_only=True).restore(like)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(config, workdir) of eight steps in one go."""
    config, workdir = tiny_config(), tmp_path_factory.mktemp("runs") / "undisturbed"
    loop.train(config, workdir)
    return config, workdir


def assert_same_run(undisturbed, workdir):
    config, reference = undisturbed
    (state, extra), (expected, expected_extra) = (
        final_state(config, workdir),
        final_state(config, reference),
    )
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert extra == expected_extra
    assert curves(workdir) == curves(reference)


def test_a_workdir_holds_what_a_person_looks_for(undisturbed):
    _, workdir = undisturbed
    for name in (
        "config.json",
        "log.txt",
        "metrics.jsonl",
        "tensorboard",
        "plots/schedule.png",
        "plots/losses.png",
    ):
        assert (workdir / name).exists(), name
    assert max(pixels(workdir / "samples" / "step_0000008.png").shape[:2]) > 100
    lines = curves(workdir)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 8]
    assert {"grad_norm", "param_norm", "learning_rate"} <= set(lines[0])
    assert [line["learning_rate"] for line in lines[:3]] == pytest.approx(
        [0.0, 5e-4, 1e-3]
    )  # warm-up over two steps
    assert "trained to step 8" in (workdir / "log.txt").read_text()


def test_four_and_four_steps_are_eight_bit_for_bit(undisturbed, tmp_path):
    loop.train(tiny_config(num_steps=4), tmp_path / "run")
    loop.train(tiny_config(), tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


def test_a_complete_run_started_again_changes_nothing(undisturbed):
    config, workdir = undisturbed
    before = curves(workdir)
    assert loop.train(config, workdir) == workdir / "samples" / "step_0000008.png"
    assert curves(workdir) == before


@pytest.mark.parametrize(
    ("number", "during"), [(signal.SIGTERM, 3), (signal.SIGINT, 4)]
)  # step 4 is evaluated, too
def test_a_signal_saves_first_and_the_run_goes_on(
    undisturbed, tmp_path, monkeypatch, number, during
):
    record = loop.record

    def signal_while_it_runs(run, step, metrics):
        record(run, step, metrics)
        if step == during - 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop, "record", signal_while_it_runs)
    with pytest.raises(Interrupted) as stopped:
        loop.train(tiny_config(), tmp_path / "run")
    assert stopped.value.status == 128 + number
    assert Checkpoints(tmp_path / "run", read_only=True).latest() == during
    monkeypatch.setattr(loop, "record", record)
    loop.train(tiny_config(), tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


def test_kill_minus_nine_then_the_same_command_is_the_same_run(undisturbed, tmp_path):
    arguments = ("--workdir", tmp_path / "run", "--config", experiment_file(tmp_path))
    # A slow tail, so that the kill falls after the first checkpoint and before the end.
    running = subprocess.Popen(
        command(*arguments, "--config.training.num_steps=100000"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while not (tmp_path / "run" / "checkpoints" / "4").exists() and time.time() < deadline:
        time.sleep(0.01)
    running.kill()
    running.wait()
    restored = Checkpoints(tmp_path / "run", read_only=True).latest()
    assert restored is not None
    length = -(-max(restored, 1) // 4) * 4 + 4
    done = run_command(*arguments, f"--config.training.num_steps={length}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"resuming at step {restored}" in done.stdout
    # the program again, which computes as `cpu.tune` says: its rounding is not this process's
    alone = (
        "--workdir",
        tmp_path / "undisturbed",
        *arguments[2:],
        f"--config.training.num_steps={length}",
    )
    assert run_command(*alone).returncode == 0
    assert_same_run((tiny_config(), tmp_path / "undisturbed"), tmp_path / "run")


def test_a_damaged_checkpoint_is_said_aloud_and_the_one_before_it_is_gone_on_from(
    undisturbed, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[1], workdir)
    data = max((workdir / "checkpoints" / "8").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    _, step = generate.restore_params(
        tiny_config(), build(tiny_config()), workdir, ema=True
    )  # as `sample` and `nll`
    assert step == 4 and "the checkpoint of step 8 is damaged" in capsys.readouterr().err
    loop.train(tiny_config(), workdir)
    said = "the checkpoint of step 8 is damaged (state/"
    assert said in capsys.readouterr().out and said in (workdir / "log.txt").read_text()
    assert (workdir / "damaged" / "8").is_dir()
    assert_same_run(undisturbed, workdir)


NO_SPACE = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs /dev/full, a disk without space"
)


@pytest.mark.parametrize("waits", [True, False])
def test_images_a_second_are_those_of_the_steps_alone(tmp_path, monkeypatch, waits):
    """By a clock of its own: a step takes 2 s, the first 60 s more, a held-out loss 100 s. The host
    takes part or does not."""
    config = tiny_config(eval_every=4, checkpoint_every=8, log_every=2)
    run, state = loop.begin(config, tmp_path / "run")
    now, ready = [0.0], [0.0]  # of the host; when the device will have done what it has to

    class Result:
        def __init__(self):
            self.at = ready[0]

        def is_ready(self):
            return now[0] >= self.at

        def __array__(self, dtype=None, copy=None):
            now[0] = max(now[0], self.at)
            return np.ones(1, np.float32)

    def take_steps(state, key, batches):
        step = state.step + 1
        now[0] += 60.0 * (step == 1)
        ready[0] = max(now[0], ready[0]) + 2.0
        now[0] = ready[0] if waits else now[0]
        return state.replace(step=step), {
            name: Result() for name in ("loss", "grad_norm", "learning_rate")
        }

    def evaluate(run, state):
        now[0] += 100.0

    monkeypatch.setattr("diffusion_jax.training.logging.time.perf_counter", lambda: now[0])
    for name in ("draw_picture", "finish"):
        monkeypatch.setattr(loop, name, lambda run, state: None)
    monkeypatch.setattr(loop, "save", lambda run, state, wait: None)
    monkeypatch.setattr(loop, "evaluate", evaluate)
    loop.take_all_steps(run._replace(take_steps=take_steps), state.replace(step=0))
    speeds = {line["step"]: line["images_per_second"] for line in read_metrics(tmp_path / "run")}
    assert speeds.keys() == {2, 4, 6, 8}
    assert set(speeds.values()) == {config.training.batch_size / 2.0}


def test_the_share_of_time_outside_of_steps(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    log = RunLog(tmp_path, 0, 8, 16)
    for _ in range(2):
        now[0] += 1.0
        with log.in_step():
            now[0] += 3.0
    log.write_training(2, {"loss": 1.0}, 1e-3)
    log.close()
    line = read_metrics(tmp_path)[0]
    assert line["outside_step"] == 0.25 and line["images_per_second"] == 4.0  # 2 x 16 images in 8 s


@NO_SPACE
@pytest.mark.parametrize("name", ["metrics", "text", "events"])
def test_no_line_of_the_log_is_lost_in_silence(tmp_path, name):
    log = RunLog(tmp_path, 0, 8, 16)
    holder, attribute = (log.events, "file") if name == "events" else (log, name)
    getattr(holder, attribute).close()
    full = RecordWriter("/dev/full") if name == "events" else open("/dev/full", "a", buffering=1)  # noqa: SIM115
    setattr(holder, attribute, full)

    @writing(tmp_path)
    def write():
        log.write(1, {"loss": 1.0})
        log.say("a line")
        log.flush()

    with pytest.raises(
        UserError, match="cannot be written: No space left on device; the last checkpoint is whole"
    ) as error:
        write()
    assert "\n" not in str(error.value)
    log.close()
    with contextlib.suppress(OSError):
        full.close()


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
        loop.train(config, tmp_path / "run")
    assert int(final_state(config, tmp_path / "run")[0].step) == 8
    (tmp_path / "run" / name).unlink(missing_ok=True)
    loop.train(config, tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


LIMITED = (
    "import os, resource, sys; "
    "resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv[1]),)); os.execv(sys.argv[2], sys.argv[2:])"
)


def start(arguments, largest_file=None):
    limit = [sys.executable, "-c", LIMITED, str(largest_file)] if largest_file else []
    return subprocess.run(
        limit + command(*arguments), env=environment(), capture_output=True, text=True, timeout=300
    )


def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_one_line(undisturbed, tmp_path):
    """In orbax's thread, by a limit on the size of files, which needs no rights; and the run goes
    on when there is space."""
    arguments = ("--workdir", tmp_path / "run", "--config", experiment_file(tmp_path))
    shutil.copytree(undisturbed[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    size_of_pictures = max(
        path.stat().st_size for path in (tmp_path / "run" / "plots").iterdir()
    )  # smaller than parameters
    stopped = start(arguments, largest_file=size_of_pictures * 5 // 4)
    assert stopped.returncode == 2, stopped.stderr[-2000:]
    line = stopped.stderr.splitlines()[-1]
    assert "Traceback" not in stopped.stderr
    assert line.startswith("error: the checkpoint of step 8 cannot be written to ")
    assert (
        ": File too large; the last one is that of step 4, and the same command goes on from there"
        in line
    )
    loop.train(tiny_config(), tmp_path / "run")
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


@pytest.mark.parametrize("size, begun", [("44k", False), ("80k", True)])
def test_a_run_that_cannot_write_leaves_no_file_open(small_disk, size, begun):
    """Full before the log's first line, and after it."""
    disk, remount = small_disk
    remount(f"size={size}")
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        loop.train(tiny_config(), disk / "run")
    assert open_files(disk) == []
    assert ("starting" in (disk / "run" / "log.txt").read_text()) == begun


def test_a_profile_that_cannot_be_written_leaves_no_file_open(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "profile"))

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, **options: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    with pytest.raises(UserError, match=r"cannot be written: No space left on device"):
        loop.train(tiny_config(profile_steps="1:99", num_steps=3), tmp_path / "run")
    assert open_files(tmp_path) == []


def test_a_small_disk(undisturbed, small_disk, tmp_path):
    """Full during a save, then with space again, then read-only."""
    disk, remount = small_disk
    config = tiny_config()
    with pytest.raises(UserError, match=r"No space left on device") as error:
        loop.train(config, disk / "run")
    assert "\n" not in str(error.value)
    assert open_files(disk) == []
    kept = Checkpoints(disk / "run", read_only=True).latest()
    remount("size=64m")
    loop.train(config, disk / "run")
    assert_same_run(undisturbed, disk / "run")
    assert ("starting" if kept is None else f"resuming at step {kept}") in (
        disk / "run" / "log.txt"
    ).read_text().splitlines()[-2]
    remount("ro")
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        loop.train(tiny_config(num_steps=12), disk / "run")
    assert int(final_state(config, disk / "run")[0].step) == 8


def test_a_loss_that_is_not_finite_stops_with_a_diagnosis(tmp_path):
    config = tiny_config(
        learning_rate=1e30, warmup_steps=0, clip_norm=0.0, checkpoint_every=1, eval_every=0
    )
    with pytest.raises(
        UserError,
        match=r"step \d: (loss|grad_norm) is (nan|inf); the last good checkpoint is that of step 1",
    ):
        loop.train(config, tmp_path / "run")
    state, _ = final_state(config, tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


def test_training_drops_labels_and_the_held_out_loss_keeps_them(tmp_path, monkeypatch):
    config, seen = tiny_config(label_dropout=0.5), []
    label_as_loss = lambda network, x0, eps, level, cond: cond.astype(np.float32)
    monkeypatch.setattr(loop, "build", lambda config: build(config)._replace(loss=label_as_loss))
    monkeypatch.setattr(
        "diffusion_jax.runs.build.make_train_step",
        lambda loss_fn, *args, **options: seen.append(loss_fn),
    )
    run, state = loop.begin(config, tmp_path / "run")
    run.checkpoints.close()
    run.log.close()
    batch = pipeline.examples(sources.digits("test"), range(24))
    met = seen[0]({}, jax.random.split(jax.random.key(0), 24), batch, np.zeros(24, int))
    assert 4 < np.sum(met == 10) < 20
    np.testing.assert_array_equal(met[met != 10], batch["label"][met != 10])
    assert run.evaluate(state.params) == pytest.approx(batch["label"].mean())


def test_several_steps_a_call_give_the_same_curve(undisturbed, tmp_path):
    loop.train(tiny_config(steps_per_call=2, num_steps=4, log_every=4), tmp_path / "run")
    same, reference = curves(tmp_path / "run")[0], curves(undisturbed[1])[3]
    assert same.keys() == reference.keys()
    for name, value in reference.items():
        assert same[name] == pytest.approx(value, rel=1e-4), name


def test_steps_per_call_must_divide_the_step_that_a_run_goes_on_from(tmp_path):
    loop.train(tiny_config(num_steps=3, eval_every=0), tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    config = tiny_config(num_steps=8, eval_every=0, steps_per_call=2, log_every=2)
    with pytest.raises(
        UserError, match="goes on at step 3, which is no multiple of training.steps_per_call=2"
    ):
        loop.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_steps_per_call_must_divide_the_step_of_the_last_whole_checkpoint(tmp_path):
    loop.train(tiny_config(num_steps=4, eval_every=0, checkpoint_every=1), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4" / "sha256.json").write_text("{")
    with pytest.raises(
        UserError, match="goes on at step 3, which is no multiple of training.steps_per_call=2"
    ):
        loop.train(
            tiny_config(num_steps=8, eval_every=0, steps_per_call=2, log_every=2), tmp_path / "run"
        )


def test_every_kept_step_must_be_one_that_is_saved():
    with pytest.raises(UserError, match="keep_every=6 must be a multiple of checkpoint_every=4"):
        build(tiny_config(keep_every=6))
    with pytest.raises(UserError, match="keep_every must be at least 0"):
        build(tiny_config(keep_every=-4))


def test_a_profile_of_some_steps_changes_no_number(undisturbed, tmp_path):
    loop.train(
        tiny_config(num_steps=4, profile_steps="3:6"), tmp_path / "run"
    )  # ends within the profiled steps
    assert len(traces(tmp_path / "run")) == 1
    assert not traces(undisturbed[1])
    loop.train(tiny_config(profile_steps="3:5"), tmp_path / "run")  # goes on within them, at step 5
    assert len(traces(tmp_path / "run")) == 2
    assert_same_run(undisturbed, tmp_path / "run")
    assert (tmp_path / "run" / "log.txt").read_text().count(
        "profile: "
    ) == 1  # the first one was cut short


def traces(workdir):
    return list((workdir / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("text", "start", "steps_per_call", "traced"),
    [
        ("3:4", 0, 1, [3, 4]),
        ("3:3", 0, 1, [3]),
        ("3:6", 4, 1, [5, 6]),  # resumed between the two
        ("3:4", 4, 1, []),
        ("3:4", 8, 1, []),
        ("3:5", 0, 2, [3, 5]),  # the calls of steps 3, 4 and 5, 6
        ("2:3", 0, 2, [1, 3]),
        ("9:20", 0, 1, []),
        ("", 0, 1, []),
    ],
)
def test_the_profiled_steps_are_those_that_were_asked_for(
    tmp_path, monkeypatch, text, start, steps_per_call, traced
):
    events = []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda folder, **options: events.append("start")
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    monkeypatch.setattr(
        jax.profiler,
        "StepTraceAnnotation",
        lambda name, step_num: events.append(step_num) or contextlib.nullcontext(),
    )
    profile = Profile(text, tmp_path)
    for step in range(start, 8, steps_per_call):
        with profile.begin(step, steps_per_call):
            pass
        profile.end(step + steps_per_call, jax.numpy.zeros(()))
    profile.close()
    assert events == (["start", *traced, "stop"] if traced else [])


@pytest.mark.parametrize("text", ["10", "5:4", "0:3", "a:b", "1:2:3", "-1:3", ":", "3 : 4"])
def test_profile_steps_that_cannot_be_read(text, tmp_path):
    with pytest.raises(
        UserError, match=r"must be the first and the last step, as in \"10:15\", not"
    ):
        loop.train(tiny_config(profile_steps=text), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Counted:
    """The metrics of a step, whose reading is an event, as a device's arrays would make the host
    wait."""

    def __init__(self, step, value, events):
        self.step, self.value, self.events = step, value, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(("read", self.step))
        return self.value

    def is_ready(self):
        return False


def test_the_host_waits_for_nothing_but_the_metrics_of_the_step_before(tmp_path, monkeypatch):
    """Every array of the device that the host reads, by any way, goes through `ArrayImpl._value`,
    and every wait through block_until_ready: between the first and the last dispatch there must be
    neither, besides the metrics of the step before."""
    run, state = loop.begin(tiny_config(eval_every=0, checkpoint_every=8), tmp_path / "run")
    events, names = (
        [],
        {name: np.ones(1, np.float32) for name in ("loss", "grad_norm", "learning_rate")},
    )

    def take_steps(state, key, batches):
        step = 1 + sum(what == "step" for what, _ in events)
        events.append(("step", step))
        return state.replace(step=step), {
            name: Counted(step, value, events) for name, value in names.items()
        }

    array, value = type(state.step), type(state.step)._value
    monkeypatch.setattr(
        array, "_value", property(lambda a: events.append(("wait", a.shape)) or value.fget(a))
    )
    monkeypatch.setattr(array, "block_until_ready", lambda a: events.append(("wait", a.shape)) or a)
    monkeypatch.setattr(
        loop, "begin", lambda config, workdir: (run._replace(take_steps=take_steps), state)
    )
    monkeypatch.setattr(loop, "draw_picture", lambda run, state: None)
    monkeypatch.setattr(loop, "save", lambda run, state, wait: None)
    monkeypatch.setattr(loop, "finish", lambda run, state: None)
    loop.train(run.config, tmp_path / "run")
    expected = [("step", 1)]
    for step in range(2, 9):
        expected += [("step", step)] + [("read", step - 1)] * len(names)
    start = events.index(("step", 1))
    assert events[start : start + len(expected)] == expected
    assert events[start + len(expected) :] == [("read", 8)] * len(names)
