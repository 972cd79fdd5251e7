"""Whole runs: that a resumed one is the same run, whatever ended it."""

import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import (
    ROOT,
    assert_same_run,
    curves,
    environment,
    experiment_file,
    final_state,
    mlp_config,
    pixels,
    tiny_config,
)

from diffusion_jax.commands import train
from diffusion_jax.core.errors import Interrupted, UserError
from diffusion_jax.data import pipeline, sources
from diffusion_jax.objectives import Context
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.open import restore_params
from diffusion_jax.training.checkpoint import Checkpoints


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


def test_four_and_four_steps_are_eight_bit_for_bit(workdir, tmp_path, no_pictures):
    config = tiny_config(eval_every=0)  # a U-Net with dropout
    shutil.copytree(workdir, tmp_path / "run")
    for name in ("run", "whole"):
        train.train(config, tmp_path / name)
    assert "resuming at step 4" in (tmp_path / "run" / "log.txt").read_text()
    assert_same_run((config, tmp_path / "whole"), tmp_path / "run")


def test_a_complete_run_started_again_changes_nothing(undisturbed):
    config, workdir = undisturbed
    before = curves(workdir)
    assert train.train(config, workdir) == workdir / "samples" / "step_0000008.png"
    assert curves(workdir) == before


@pytest.mark.parametrize(
    ("number", "during"), [(signal.SIGTERM, 3), (signal.SIGINT, 4)]
)  # step 4 is evaluated, too
def test_a_signal_saves_first_and_the_run_goes_on(
    undisturbed, tmp_path, monkeypatch, no_pictures, number, during
):
    record = train.record

    def signal_while_it_runs(run, unread, step):
        record(run, unread, step)
        if step == during - 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(train, "record", signal_while_it_runs)
    with pytest.raises(Interrupted) as stopped:
        train.train(mlp_config(), tmp_path / "run")
    assert stopped.value.status == 128 + number
    assert Checkpoints(tmp_path / "run", read_only=True).latest() == during
    monkeypatch.setattr(train, "record", record)
    train.train(mlp_config(), tmp_path / "run")
    assert_same_run(undisturbed, tmp_path / "run")


WITHOUT_PICTURES = """
import os, signal, sys, time
import main
from diffusion_jax.commands import train

train.draw_picture = train.plots.schedule = lambda *arguments: None
"""

# Two runs of one program, of which the second is killed after its first checkpoint.
KILLED = """
def record(run, unread, step, record=train.record):
    record(run, unread, step)
    if step == 7 and run.workdir.name == "run":
        while not (run.workdir / "checkpoints" / "4").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

train.record = record
for sys.argv in ["main.py", "--workdir", sys.argv[1], *sys.argv[4:]], ["main.py", *sys.argv[2:]]:
    assert main.main() == 0
"""


def run_program(code, *arguments):
    """The program itself, which computes as `cpu.tune` says: its rounding is not this process's."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_PICTURES + code, *arguments],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_kill_minus_nine_then_the_same_command_is_the_same_run(tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = ("--workdir", run, "--config", experiment_file(tmp_path, "mlp_config"))
    killed = run_program(KILLED, whole, *arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert Checkpoints(run, read_only=True).latest() == 4
    done = run_program("sys.exit(main.main())", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resuming at step 4" in done.stdout
    assert_same_run((mlp_config(), whole), run)


def test_a_damaged_checkpoint_is_said_aloud_and_the_one_before_it_is_gone_on_from(
    undisturbed, tmp_path, capsys, no_pictures
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed[1], workdir)
    data = max((workdir / "checkpoints" / "8").rglob("d/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(data.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    data.write_bytes(damaged)
    # as `sample` and `nll`
    _, step = restore_params(mlp_config(), build(mlp_config()), workdir, ema=True)
    assert step == 4 and "the checkpoint of step 8 is damaged" in capsys.readouterr().err
    train.train(mlp_config(), workdir)
    said = "the checkpoint of step 8 is damaged (state/"
    assert said in capsys.readouterr().out and said in (workdir / "log.txt").read_text()
    assert (workdir / "damaged" / "8").is_dir()
    assert_same_run(undisturbed, workdir)


def test_a_loss_that_is_not_finite_stops_with_a_diagnosis(tmp_path, no_pictures):
    config = mlp_config(
        learning_rate=1e30, warmup_steps=0, clip_norm=0.0, checkpoint_every=1, eval_every=0
    )
    with pytest.raises(
        UserError,
        match=r"step \d: (loss|grad_norm) is (nan|inf); the last good checkpoint is that of step 1",
    ):
        train.train(config, tmp_path / "run")
    state, _ = final_state(config, tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))


def test_training_drops_labels_and_the_held_out_loss_keeps_them(tmp_path, monkeypatch):
    """The labels that the network is told, taken for its losses."""

    def told(config):
        parts = build(config)

        def loss(params, aux, context, batch):
            _, cond = parts.conditioner.train(context.keys if context.training else None, batch)
            return cond["label"].astype(np.float32), {}

        return parts._replace(objective=parts.objective._replace(loss=loss))

    config = mlp_config(num_steps=1, checkpoint_every=1)
    config.conditioning = use("label", dropout=0.5)
    monkeypatch.setattr(train, "build", told)
    run, state = train.begin(config, tmp_path / "run")
    run.checkpoints.close()
    run.log.close()
    batch = pipeline.examples(sources.digits("test"), range(24))
    keys = jax.random.split(jax.random.key(0), 24)
    context = Context(None, {}, 0, keys, None, None)
    met = np.asarray(run.parts.objective.loss({}, (), context, batch)[0])
    assert 4 < np.sum(met == 10) < 20
    np.testing.assert_array_equal(met[met != 10], batch["label"][met != 10])
    assert run.evaluate(state.params, state.aux) == pytest.approx(batch["label"].mean())


def test_several_steps_a_call_give_the_same_curve(undisturbed, tmp_path, no_pictures):
    train.train(mlp_config(steps_per_call=2, num_steps=4, log_every=4), tmp_path / "run")
    same, reference = curves(tmp_path / "run")[0], curves(undisturbed[1])[3]
    assert same.keys() == reference.keys()
    for name, value in reference.items():
        assert same[name] == pytest.approx(value, rel=1e-4), name


def test_steps_per_call_must_divide_the_step_that_a_run_goes_on_from(tmp_path, no_pictures):
    train.train(mlp_config(num_steps=3, eval_every=0), tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    config = mlp_config(num_steps=8, eval_every=0, steps_per_call=2, log_every=2)
    with pytest.raises(
        UserError, match="goes on at step 3, which is no multiple of training.steps_per_call=2"
    ):
        train.train(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_steps_per_call_must_divide_the_step_of_the_last_whole_checkpoint(tmp_path, no_pictures):
    train.train(mlp_config(num_steps=4, eval_every=0, checkpoint_every=1), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4" / "sha256.json").write_text("{")
    with pytest.raises(
        UserError, match="goes on at step 3, which is no multiple of training.steps_per_call=2"
    ):
        train.train(
            mlp_config(num_steps=8, eval_every=0, steps_per_call=2, log_every=2), tmp_path / "run"
        )


def test_a_profile_of_some_steps_changes_no_number(undisturbed, tmp_path, no_pictures):
    train.train(mlp_config(profile_steps="3:5"), tmp_path / "run")
    assert len(list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))) == 1
    assert not (undisturbed[1] / "profile").exists()
    assert_same_run(undisturbed, tmp_path / "run")
    assert (tmp_path / "run" / "log.txt").read_text().count("profile: ") == 1
