"""Distillation in rounds: each an ordinary run, whose teacher is the round before."""

import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import (
    ROOT,
    arrays,
    assert_same_run,
    environment,
    final_state,
    main_run,
    mlp_config,
)

from diffusion_jax.commands import distill, train
from diffusion_jax.core.errors import UserError
from diffusion_jax.interop.files import fingerprint
from diffusion_jax.runs.bits import check_bins
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.editing import Job
from diffusion_jax.runs.settings import load, to_json
from diffusion_jax.training.checkpoint import Checkpoints

SMALL = ("--config.training.num_steps=2", "--config.training.checkpoint_every=1",
         "--config.training.eval_every=0")  # fmt: skip
AUTOGUIDED = ("--config.sampling.guide=autoguidance", "--config.sampling.guide.weak=runs/weak")
TOLD = "--config.conditioning=label,guidance_weight"


def write_run(folder, config, seed=0):
    """A run of random parameters, as if it had been trained."""
    parts = build(config)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda a: 0.2 * rng.standard_normal(a.shape, np.float32),
        jax.eval_shape(parts.init_params, jax.random.key(0)),
    )
    checkpoints = Checkpoints(folder, 1)
    state = parts.state_of(params, jax.random.key(1))
    checkpoints.save(state, {"key": [0, 0]}, wait=True)
    checkpoints.close()
    (folder / "config.json").write_text(to_json(config))
    return params


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """(workdir, parameters) of a run that predicts v."""
    folder, config = tmp_path_factory.mktemp("distill") / "teacher", mlp_config()
    config.diffusion.prediction = "v"
    config.conditioning = use("label", dropout=0.2)
    folder.mkdir()
    return folder, write_run(folder, config)


def flags(workdir, teacher, *more):
    return ("distill", "--workdir", workdir, "--teacher", teacher, *more)


def test_each_round_is_a_run_whose_teacher_is_the_one_before(
    teacher, tmp_path, capsys, no_pictures
):
    folder, params = teacher
    shutil.copytree(folder, tmp_path / "teacher")
    guided = "--config.diffusion.loss.guidance=0.5"
    command = flags(tmp_path / "run", tmp_path / "teacher", "--to=2", "--from=8", guided, *SMALL)
    main_run(*command)
    said = capsys.readouterr().out
    assert f"round 1 of 2: 4 steps, {tmp_path}/run/steps_0004, from {tmp_path}/teacher" in said
    assert f"round 2 of 2: 2 steps, {tmp_path}/run/steps_0002, from {tmp_path}/run/ste" in said
    first, second = (tmp_path / "run" / f"steps_000{n}" for n in (4, 2))
    assert load(first / "config.json").training.init_sha256 == fingerprint(params)
    config = load(second / "config.json")
    assert load(first / "config.json").diffusion.loss.guidance == 0.5
    assert config.diffusion.loss.guidance == 0.0  # its teacher has learnt what that does
    ended = final_state(load(first / "config.json"), first)[0]
    assert config.training.init_sha256 == fingerprint(ended.ema_params)
    state = final_state(config, second)[0]
    jax.tree.map(np.testing.assert_array_equal, state.aux["teacher"], ended.ema_params)
    assert (config.diffusion.loss.entry, config.diffusion.loss.steps) == ("progressive", 2)
    drawn = config.sampling
    assert (drawn.sampler.entry, drawn.grid.entry, drawn.steps) == ("ddim", "trailing", "2")
    np.testing.assert_array_equal(build(config).grid.t, [19, 9])

    log = (second / "log.txt").read_text()
    main_run(*command)
    assert f"round 2 of 2: 2 steps, {second}, complete" in capsys.readouterr().out
    assert (second / "log.txt").read_text() == log
    with pytest.raises(UserError, match=r"steps_0004 goes on with its own settings, not trai"):
        main_run(*command, "--config.training.learning_rate=0.1")

    shutil.rmtree(first)  # a run that has begun needs its teacher no more
    config.training.keep_checkpoints = 3
    train.train(config, second)
    main_run("sample", "--workdir", second, "--config.sampling.num=4")
    (file,) = second.glob("samples/*/samples.npz")
    assert arrays(file)["images"].shape == (4, 8, 8, 1)


# Distillations in one program; the second round of one in the folder "run" is killed where asked.
ROUNDS = """
import os, signal, sys, time
import main
from diffusion_jax.commands import distill, train

train.draw_picture = lambda run, state: None

def record(run, unread, step, record=train.record):
    record(run, unread, step)
    if step == 2 and run.workdir.parts[-2:] == ("run", "steps_0002"):
        while not (run.workdir / "checkpoints" / "1").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "killed":
    train.record = record
for workdir in sys.argv[2].split(","):
    sys.argv = ["main.py", "distill", "--workdir", workdir, *sys.argv[-6:]]
    assert main.main() == 0
"""


def test_kill_minus_nine_in_a_round_then_the_same_command_is_the_same_run(teacher, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    more = (f"--teacher={teacher[0]}", "--to=2", "--from=8", *SMALL)

    def rounds(*words):
        return subprocess.run(
            [sys.executable, "-c", ROUNDS, *words, *more],
            env=environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=300,
        )

    killed = rounds("killed", str(run))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert Checkpoints(run / "steps_0002", read_only=True).latest() == 1
    done = rounds("whole", f"{run},{whole}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "steps_0004, complete" in done.stdout and "resuming at step 1" in done.stdout
    for name in ("steps_0004", "steps_0002"):
        config = load(run / name / "config.json")
        assert_same_run((config, whole / name), run / name)


def started(config, workdir):
    """The state that a run begins with, of a run that is killed before its first step."""
    run, state = train.begin(config, workdir)
    run.checkpoints.close()
    run.log.close()
    return run, state


@pytest.fixture
def student(teacher):
    """The config of a student that is told guidance's weight."""
    config = load(teacher[0] / "config.json")
    config.conditioning = (use("label", dropout=0.2), use("guidance_weight", high=3.0))
    config.diffusion.loss = "distilled_guidance"
    config.training.init = str(teacher[0])
    config.training.num_steps = 1
    return config


def test_a_student_that_is_told_more_is_its_teacher_at_first(teacher, student, tmp_path):
    run, state = started(student, tmp_path / "run")
    own = dict(state.params)
    assert not np.any(own.pop("guidance_weight")["kernel"])
    jax.tree.map(np.testing.assert_array_equal, own, teacher[1])
    stored = load(tmp_path / "run" / "config.json")
    assert stored.training.init_sha256 == fingerprint(teacher[1])

    # and it is told the weight in one call, where its teacher would be called twice
    kernel = np.random.default_rng(0).standard_normal((9, 64), np.float32)
    params = state.params | {"guidance_weight": {"kernel": kernel}}
    index, calls = np.arange(3), []

    def apply_fn(params, x, t, cond, dropout_key=None):
        calls.append((len(x), sorted(cond)))
        return run.parts.apply_fn(params, x, t, cond, dropout_key)

    parts = run.parts._replace(apply_fn=apply_fn)
    generate = make_generate(student, parts)
    plain, guided = (generate(params, index, w=w) for w in (0.0, [1.0, 0.0, 2.0]))
    assert set(map(str, calls)) == {"(3, ['guidance_weight', 'label'])"}
    np.testing.assert_allclose(guided[1], plain[1], atol=1e-5)
    assert np.abs(guided - plain)[[0, 2]].max(axis=(1, 2, 3)).min() > 1e-3

    student.sampling.guidance = 2.0  # an edit tells it, too
    job = Job(student, run.parts, np.ones((8, 8, 1), bool))
    _, denoiser = job.drawing((params, None), {"label": index})
    np.testing.assert_array_equal(denoiser.denoiser.cond["guidance_weight"][:, 0], [2.0] * 3)


def test_a_teacher_that_has_changed_before_the_first_checkpoint_is_refused(
    student, tmp_path, no_pictures
):
    config, workdir = student, tmp_path / "run"
    other = tmp_path / "teacher"
    shutil.copytree(config.training.init, other)
    config.training.init = str(other)
    started(config, workdir)
    theirs = load(other / "config.json")
    shutil.rmtree(other)
    other.mkdir()
    write_run(other, theirs, seed=1)
    with pytest.raises(UserError, match="has other parameters now than those that the run began"):
        train.train(config, workdir)


@pytest.mark.parametrize(
    ("objective", "times", "argument"),
    [
        ("consistency_distillation", "karras", None),
        ("easy_consistency", "lognormal", ("stage_steps", 50)),
        ("continuous_consistency", "lognormal", ("warmup", 40)),
    ],
)
def test_a_consistency_student_has_what_its_objective_asks_for(objective, times, argument):
    config = distill.student_of(mlp_config())
    distill.suit(config, objective)
    config.diffusion.loss, config.training.num_steps = objective, 400
    distill.in_stages(config, {})
    assert config.diffusion.timesteps.entry == times and config.evaluation.bits_per_dim == 0
    assert argument is None or getattr(config.diffusion.loss, argument[0]) == argument[1]
    parts = build(config)
    assert config.sampling.sampler.entry == "consistency" and len(parts.grid.t) == 1
    ratio = float(parts.grid.sigma[0] / parts.grid.alpha[0])
    noisiest = parts.schedule.level(parts.schedule.t_max)
    assert ratio == pytest.approx(float(noisiest.sigma / noisiest.alpha)) or 40 < ratio < 160
    with pytest.raises(UserError, match="of a network whose x0 is the data's mean"):
        check_bins(parts)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--to is missing: the student's steps, as in --to 4"),
        (("--to=-1",), "--to must be at least 1 step, not -1"),
        (("--to=8", "--from=4"), "--from must be --to=8 times 2, 4, 8 and so on, as 16, not 4"),
        (("--to=3", "--from=16"), "the nearest are 12 and 24, not 16"),
        (("--to=40",), "--to=40 is more than the 20 steps of the teacher's table"),
        (("--to=3", "--from=96"), "--from=96 is more than twice the 20 steps of the teach"),
        (("--objective=denoising",), "--objective=denoising learns from no teacher"),
        (("--objective=progressiv",), "did you mean 'progressive'?"),
        (("--objective=distilled_guidance",), "add guidance_weight to config.conditioning"),
        (("--objective=distilled_guidance", "--to=4"), "--to and --from are of progressive, not"),
        (("--to=4", "--config.model.width=32"), "is a run of another network (model.width: 64"),
        (("--to=4", "--config.diffusion.schedule=linear"), "(diffusion.schedule: 'cosine' ->"),
        (("--to=4", "--config.diffusion.prediction=x0"), "(diffusion.prediction: 'v' -> 'x0')"),
        (("--to=4", "--config.diffusion.prediction=eps"), "a step from pure noise needs a pred"),
        (("--to=4", "--config.conditioning="), "is a run of another network ("),
        (("--to=4", TOLD, "--config.sampling.guidance=9"), "must lie in [0, 4], the weights that"),
        (
            ("--to=4", TOLD, *AUTOGUIDED),
            "config.sampling.guide and negative are of guidance by",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(teacher, tmp_path, words, message):
    with pytest.raises(UserError) as error:
        main_run(*flags(tmp_path / "run", teacher[0], *words))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_teacher_must_be_a_run_that_diffuses(tmp_path):
    with pytest.raises(UserError, match="--teacher is missing: the run that is distilled"):
        main_run("distill", "--workdir", tmp_path / "run", "--to=4")
    with pytest.raises(UserError, match="--teacher must be the workdir of a run, but"):
        main_run(*flags(tmp_path / "run", tmp_path / "none", "--to=4"))
    config = mlp_config()
    config.diffusion.loss, config.model, config.conditioning = "autoencoding", "autoencoder", ()
    (tmp_path / "config.json").write_text(to_json(config))
    with pytest.raises(UserError, match="distill is of a diffusion model; this run's is an auto"):
        main_run(*flags(tmp_path / "run", tmp_path, "--to=4"))
