"""What a run starts from and what it leaves as it is, and runs on data that are no bytes."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import (
    arrays,
    assert_same_run,
    curves,
    final_state,
    main_run,
    mlp_config,
    pixels,
)

from diffusion_jax.commands import train
from diffusion_jax.core import noise
from diffusion_jax.core.errors import UserError
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.runs.build import build
from diffusion_jax.runs.settings import load, to_json
from diffusion_jax.training.state import split


def started(config, workdir):
    """The state that a run begins with, of a run that is killed before its first step."""
    run, state = train.begin(config, workdir)
    run.checkpoints.close()
    run.log.close()
    return state


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


# training.init


@pytest.fixture
def old(undisturbed):
    return undisturbed[1]


def starting_from(folder):
    """A run of one step from the averaged parameters of another."""
    return mlp_config(num_steps=1, eval_every=0, checkpoint_every=1, init=str(folder))


@pytest.fixture
def from_old(old):
    return starting_from(old)


def test_a_run_starts_from_the_averaged_parameters_of_another(old, tmp_path, from_old, no_pictures):
    state, (theirs, _) = started(from_old, tmp_path / "run"), final_state(from_old, old)
    assert int(state.step) == 0
    assert_equal(state.params, theirs.ema_params)
    assert_equal(state.ema_params, theirs.ema_params)
    moments = [a for a in jax.tree.leaves(state.opt_state) if a.ndim]
    assert moments and all(not np.any(a) for a in moments)
    raw, averaged = (jax.tree.leaves(tree)[0] for tree in (theirs.params, theirs.ema_params))
    assert np.any(raw != averaged)


def test_killed_before_its_first_checkpoint_it_starts_there_again(
    old, tmp_path, from_old, no_pictures
):
    started(from_old, tmp_path / "killed")
    assert not any((tmp_path / "killed" / "checkpoints").iterdir())
    for name in ("killed", "whole"):
        train.train(from_old, tmp_path / name)
        log = (tmp_path / name / "log.txt").read_text()
        assert f"it starts from the averaged parameters of {old}" in log
    assert_same_run((from_old, tmp_path / "whole"), tmp_path / "killed")


def test_a_run_that_has_begun_needs_the_other_no_more(old, tmp_path, no_pictures):
    shutil.copytree(old, tmp_path / "old")
    config = starting_from(tmp_path / "old")
    train.train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "old")
    config.training.num_steps = 2
    train.train(config, tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "resuming at step 1" in log and log.count("it starts from") == 1


def test_a_run_of_another_network_is_named_with_what_differs(old, tmp_path, from_old):
    from_old.model.width = 32
    from_old.diffusion.prediction = "v"
    with pytest.raises(UserError) as error:
        train.train(from_old, tmp_path / "run")
    said = str(error.value)
    assert said.startswith(f"config.training.init={old} is a run of another network (")
    assert "model.width: 64 -> 32; diffusion.prediction: 'eps' -> 'v')" in said
    assert not (tmp_path / "run").exists()


# Teachers


def student_of(folder, loss, **training):
    config = mlp_config(eval_every=0, checkpoint_every=1, init=str(folder), **training)
    config.diffusion.loss = loss
    return config


def test_a_student_keeps_its_teacher_when_it_goes_on(old, tmp_path, no_pictures):
    teacher = final_state(mlp_config(), old)[0].ema_params
    for steps in (1, 2):  # the learning rate of the first step is 0
        config = student_of(old, "continuous_consistency", num_steps=steps)
        train.train(config, tmp_path / "run")
    state, _ = final_state(config, tmp_path / "run")
    assert_equal(state.aux["teacher"], teacher)
    assert int(state.step) == 2 and np.any(state.aux["u"])
    leaves = map(jax.tree.leaves, (state.params, teacher))
    assert any(np.any(mine != theirs) for mine, theirs in zip(*leaves, strict=True))


@pytest.mark.parametrize(
    "loss", [name for name in OBJECTIVES if "consistency" in name and "training" not in name]
)
def test_what_learns_from_a_teacher_is_refused_without(tmp_path, loss):
    with pytest.raises(UserError, match=rf"loss={loss} learns from a trained network: set"):
        train.train(student_of("", loss), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


# training.freeze


def test_what_is_frozen_stays_bit_for_bit_and_the_rest_is_trained(
    old, tmp_path, from_old, no_pictures
):
    """The way of fine-tuning: from another run, all but a few parameters frozen."""
    pattern = "^(?!dense_out)"
    from_old.training.freeze = pattern
    train.train(from_old, tmp_path / "run")
    (state, _), (theirs, _) = (
        final_state(from_old, tmp_path / "run"),
        final_state(mlp_config(), old),
    )
    trained, frozen = split(theirs.ema_params, pattern)
    assert list(trained) == list(state.params) == list(state.ema_params) == ["dense_out"]
    assert_equal(state.frozen, frozen)
    from_old.training.num_steps = 3  # the learning rate of the first step is 0
    train.train(from_old, tmp_path / "run")
    state, _ = final_state(from_old, tmp_path / "run")
    assert_equal(state.frozen, frozen)
    for before, after in zip(*map(jax.tree.leaves, (trained, state.params)), strict=True):
        assert np.any(before != after)
    moments = sum(a.size for a in jax.tree.leaves(state.opt_state) if a.ndim)
    assert moments == 2 * sum(a.size for a in jax.tree.leaves(state.params))
    count = sum(a.size for a in jax.tree.leaves(frozen))
    assert f"and {count:,} frozen ones" in (tmp_path / "run" / "log.txt").read_text()

    main_run("sample", "--workdir", tmp_path / "run", "--config.sampling.num=2")
    main_run("nll", "--workdir", tmp_path / "run", "--config.likelihood.examples=2",
             "--config.likelihood.steps=2")  # fmt: skip
    assert (tmp_path / "run" / "nll" / "step3-test-2-examples2.json").exists()


def test_without_another_run_the_initial_parameters_are_frozen(tmp_path, no_pictures):
    config = mlp_config(freeze="dense_in|block0", eval_every=0)
    state = started(config, tmp_path / "run")
    init_key, _ = jax.random.split(noise.key(config.seed))
    _, frozen = split(build(config).init_params(init_key), "dense_in|block0")
    assert_equal(state.frozen, frozen)
    assert "dense_in" in state.frozen and "dense_in" not in state.params


# Continuous time, and floats


def test_the_quartiles_of_the_loss_are_finite_in_continuous_time(tmp_path):
    config = mlp_config(num_steps=2, eval_every=2, sample_every=0, checkpoint_every=2)
    config.diffusion.schedule, config.diffusion.prediction = "edm", "edm"
    config.diffusion.timesteps = "lognormal"
    config.sampling.sampler, config.sampling.grid, config.sampling.steps = "heun", "karras", "3"
    train.train(config, tmp_path)
    for line in curves(tmp_path):
        if "loss" in line:
            quartiles = [line[f"loss_q{i}"] for i in range(4)]
            assert np.all(np.isfinite(quartiles))
            assert np.mean(quartiles) == pytest.approx(line["loss"], rel=1e-5)
    for name in ("plots/schedule.png", "samples/step_0000002.png"):
        assert max(pixels(tmp_path / name).shape) > 100
    with pytest.raises(UserError, match="the bound and the figures need a table of steps"):
        main_run("nll", "--workdir", tmp_path)


def test_floats_are_trained_on_and_come_back_in_their_own_units(tmp_path, no_pictures):
    low, high, rng = -300.0, 20.0, np.random.default_rng(0)
    images = rng.uniform(low, high, (60, 8, 8, 1)).astype(np.float32)
    images[0, 0, 0], images[0, 0, 1] = low, high
    np.save(tmp_path / "floats.npy", images)
    config = mlp_config(num_steps=2, eval_every=2, checkpoint_every=2)
    config.data.source = "arrays"
    config.data.source.folder = str(tmp_path / "floats.npy")
    config.data.num_classes, config.conditioning = 0, ()
    (tmp_path / "config.json").write_text(to_json(config))
    run, file = tmp_path / "run", ("--config", tmp_path / "config.json")
    main_run("train", "--workdir", run, *file)
    assert config.data.source.range == ()
    stored = json.loads((run / "config.json").read_text())
    assert stored["data"]["source"]["range"] == [low, high]
    assert {line["step"] for line in curves(run) if "eval_loss" in line} == {2}
    main_run("train", "--workdir", run, *file, "--config.training.num_steps=4")
    assert "resuming at step 2" in (run / "log.txt").read_text()

    few = ("--config.sampling.num=6", "--config.sampling.seed=1")
    for words in ((), file):  # a file that leaves the range open means the run's
        main_run("sample", "--workdir", run, *words, *few)
    for name in ("step4-ancestral-5-seed1", "step4-ancestral-5-seed1-2"):
        found = arrays(run / "samples" / name / "samples.npz")["images"]
        assert (found.shape, found.dtype) == ((6, 8, 8, 1), np.float32)
        assert low - 0.01 <= found.min() < 0.8 * low and 0.2 * high < found.max() <= high + 0.01
        assert max(pixels(run / "samples" / name / "grid.png").shape) > 20
    assert load(run / "config.json").data.source.range == (low, high)
    with pytest.raises(UserError, match="bits/dim are of 8-bit data"):
        main_run("nll", "--workdir", run)
    with pytest.raises(UserError, match="scores are of 8-bit images"):
        main_run("evaluate", "--workdir", run, "--config.evaluation.features=pixels")
    config.data.source.range = (0.0, 1.0)
    with pytest.raises(UserError, match=r"range"):
        train.train(config, tmp_path / "narrow")
