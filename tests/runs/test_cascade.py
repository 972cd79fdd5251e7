"""Chains of runs: digits of 2 x 2, 4 x 4 and 8 x 8 by networks of one line."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from frechet_by_hand import flat, gaussians
from tensors import refusal
from tiny import main_run, mlp_config, pixels

from diffusion_jax.commands import train
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources, texts
from diffusion_jax.data.averaging import averaged
from diffusion_jax.models.registry import MODELS
from diffusion_jax.runs import cascade
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.open import open_run
from diffusion_jax.runs.settings import load
from diffusion_jax.runs.workdir import open_workdir
from diffusion_jax.training.checkpoint import Checkpoints


class Pixelwise(nn.Module):
    """Of each pixel, the label, and the low image and its level where these are told."""

    @nn.compact
    def __call__(self, x, t, cond, *, train=False):
        wide = (slice(None), None, None, None)
        shift = self.param("shift", lambda key: jnp.linspace(1.5, -1.5, 11))
        scale = self.param("scale", lambda key: jnp.float32(0.7))
        h = scale * x
        if "label" in cond:
            h -= shift[cond["label"]][wide]
        if "low" in cond:
            h -= 0.9 * cond["low"][..., :1] + 0.1 * cond["low_level"].mean(axis=1)[wide]
        return h


def pixelwise() -> Pixelwise:
    return Pixelwise()


def config_of(average: int, *conditions, **training):
    """A run on digits of 8 / average squared pixels."""
    config = mlp_config(eval_every=0, **training)
    config.data.source = use("digits", average=average)
    config.data.shape = (8 // average, 8 // average, 1)
    config.conditioning = [use("label", dropout=0.1), *conditions]
    config.model, config.diffusion.prediction = "pixelwise", "v"
    return config


TOLD = use("low", factor=2, noise=0.5, sampling_noise=0.2)


@pytest.fixture(scope="module", autouse=True)
def network(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "pixelwise", pixelwise)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def saved(folder, config):
    """A run of the parameters of the start."""
    open_workdir(folder, config)
    checkpoints = Checkpoints(folder)
    checkpoints.save(build(config).init_state(jax.random.key(0)), {}, wait=True)
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, network):
    """The workdirs of three stages."""
    folder = tmp_path_factory.mktemp("cascade")
    configs = [config_of(4), config_of(2, TOLD), config_of(1, TOLD)]
    return [saved(folder / f"run{8 // c.data.source.average}", c) for c in configs]


def opened(runs, **sampling):
    configs = cascade.configs_of(runs)
    for name, value in sampling.items():
        setattr(configs[0].sampling, name, value)
    return cascade.open_chain(runs, configs, "")


def test_a_chain_is_its_stages_by_hand(runs):
    """Bit for bit; and progress has every stage's images, in order."""
    shown = []
    stages = opened(runs[:2], num=12, seed=5)
    drawn = cascade.draw_chain(stages, lambda *one: shown.append(one))
    index, images = np.arange(12), None
    for number, workdir in enumerate(runs[:2]):
        config = load(workdir / "config.json")
        config.sampling.seed = cascade.stage_seed(5, number)
        run, given = open_run(config, workdir, ""), {}
        if number:
            low = images
            given = {"low": lambda index, low=low: low[index]}
        generate = make_generate(config, run.parts, decoded=True, given=given)
        images = generate(run.params, index)
        assert shown[number][0] == number
        np.testing.assert_array_equal(shown[number][1], images)
    np.testing.assert_array_equal(drawn, images)
    assert [images.shape[1] for _, images in shown] == [2, 4]
    other = generate(run.params, index, seed=config.sampling.seed + 1)
    assert abs(drawn.astype(int) - other).max() > 10
    assert len({cascade.stage_seed(seed, n) for seed in range(9) for n in range(9)}) == 81


@pytest.fixture(scope="module")
def chained(runs):
    """(the samples of the last two runs with seed 3 by their numbers, the first 20 of them)."""
    samples = cascade.samples(opened(runs[1:], num=20, seed=3))
    return samples, samples(np.arange(20))


def test_a_chains_sample_depends_on_its_number_alone(chained):
    samples, once = chained
    order = np.random.default_rng(0).permutation(20)
    assert abs(samples(order).astype(int) - once[order]).max() <= 1


def test_sample_writes_every_stage_of_a_chain(runs, capsys):
    flags = ("--config.sampling.num=20", "--config.sampling.steps=3", "--stage=2:sampling.steps=4")
    main_run("sample", "--workdir", ",".join(map(str, runs)), *flags)
    (folder,) = (runs[-1] / "samples").iterdir()
    assert folder.name == "chain3-step0-ancestral-3-seed0"
    assert capsys.readouterr().out.endswith(f"samples: {folder}\n")
    for number, part in enumerate((folder / "stage1", folder / "stage2", folder)):
        arrays = tiny.arrays(part / "samples.npz")
        side = (2, 4, 8)[number]
        assert arrays["images"].shape == (20, side, side, 1)
        np.testing.assert_array_equal(arrays["labels"], np.arange(20) % 10)
        np.testing.assert_array_equal(pixels(part / "00013.png"), arrays["images"][13, ..., 0])
        assert (part / "grid.png").exists()
    stages = json.loads((folder / "settings.json").read_text())["stages"]
    assert [one["run"] for one in stages] == list(map(str, runs))
    assert [one["step"] for one in stages] == [0, 0, 0]
    assert [one["sampling"]["steps"] for one in stages] == ["5", "4", "3"]
    assert [one["sampling"]["num"] for one in stages] == [20] * 3
    assert [one["sampling"]["seed"] for one in stages] == [
        cascade.stage_seed(0, number) for number in range(3)
    ]


def test_evaluate_scores_the_very_samples_of_a_chain(runs, chained, capsys):
    chain = ",".join(map(str, runs[1:]))
    tiny.evaluate_run(pathlib.Path(chain), "--config.sampling.seed=3", bits_per_dim=4, num=20)
    assert "bits/dim" not in capsys.readouterr().out
    (path,) = runs[-1].glob("evaluations/chain2-*/report-20.json")
    report = json.loads(path.read_text())
    wanted = gaussians(flat(chained[1]), flat(sources.digits("train").images))
    np.testing.assert_allclose(report["fid"]["value"], wanted, rtol=2e-3)
    chain = report["protocol"]["chain"]
    assert [sorted(one) for one in chain] == [["conditioning", "network", "sampling", "step"]] * 2


def test_a_run_alone_is_told_the_held_out_examples_own_image(runs):
    config = load(runs[-1] / "config.json")
    run = open_run(config, runs[-1], "")
    images, labels = sources.digits("test").images, np.asarray(sources.digits("test").labels)
    small = averaged(images, 2, rounded=True).astype(np.uint8)
    given = {"low": lambda index: small[index % 180], "label": lambda index: labels[index % 180]}
    index = np.arange(176, 184)  # round and round
    generate = make_generate(config, run.parts, decoded=True)
    own = generate(run.params, index)
    by_hand = make_generate(config, run.parts, decoded=True, given=given)(run.params, index)
    np.testing.assert_array_equal(own, by_hand)
    config.conditioning.low.sampling_noise = 0.0
    parts = open_run(config, runs[-1], "").parts  # it may change in a workdir
    clean = make_generate(config, parts, decoded=True)(run.params, index)
    assert abs(clean.astype(int) - own).max() > 3


def test_edit_draws_given_images_at_the_runs_resolution(runs, tmp_path):
    words = ("edit", "--workdir", runs[-1], "--config.editing.task=super_resolution")
    main_run(*words, "--config.editing.num=4")
    (own,) = (runs[-1] / "edits").iterdir()
    arrays, test = tiny.arrays(own / "edits.npz"), sources.digits("test")
    small = averaged(test.images[:4], 2, rounded=True).astype(np.uint8)
    np.testing.assert_array_equal(arrays["originals"], test.images[:4])
    np.testing.assert_array_equal(arrays["inputs"], small)
    np.savez(tmp_path / "small.npz", images=small, labels=np.asarray(test.labels)[:4])
    main_run(*words, f"--config.editing.images={tmp_path / 'small.npz'}")
    (given,) = (path for path in (runs[-1] / "edits").iterdir() if path != own)
    again = tiny.arrays(given / "edits.npz")
    np.testing.assert_array_equal(again["results"], arrays["results"])
    assert "originals" not in again
    shapes = [pixels(folder / "grid.png").shape for folder in (own, given)]
    assert [height // (width // 4) for height, width in shapes] == [3, 2]  # rows of four images


def test_a_run_that_is_told_a_low_image_resumes_bit_for_bit(tmp_path, no_pictures):
    config = config_of(1, TOLD, num_steps=4, checkpoint_every=2)
    config.data.flip = True
    train.train(config, tmp_path / "whole")
    for steps in (2, 4):
        config.training.num_steps = steps
        train.train(config, tmp_path / "parts")
    tiny.assert_same_run((config, tmp_path / "whole"), tmp_path / "parts")


def test_all_stages_are_asked_for_the_same_texts(tmp_path):
    """The prompts, or the captions that the first run would take."""
    workdirs = []
    for average, conditions in ((2, ()), (1, (TOLD,))):
        config = config_of(average, use("words", length=4, rows=64, dropout=0.1), *conditions)
        config.data.source = use("digits", captions=True, average=average)
        config.data.num_classes, config.sampling.num = 0, 3
        config.conditioning = [one for one in config.conditioning if one.entry != "label"]
        workdirs.append(saved(tmp_path / f"run{average}", config))
    source = sources.digits("test", captions=True)
    held_out = tuple(texts.decode(source[i]["text"]) for i in range(3))
    last = opened(workdirs)[-1].config.sampling
    assert (last.prompts, last.num, last.negative) == (held_out, 3, "")
    asked = {"prompts": ("three", "one inverted"), "guidance": 1.0, "negative": "nine"}
    last = opened(workdirs, **asked)[-1].config.sampling
    assert (last.prompts, last.negative) == (("three", "one inverted"), "")  # it is not guided


# Bad input


@pytest.fixture(scope="module")
def others(tmp_path_factory, network):
    """Runs that do not chain."""
    folder = tmp_path_factory.mktemp("others")
    plain = config_of(2)
    unlabelled = config_of(2)
    unlabelled.conditioning, unlabelled.data.num_classes = (), 0
    found = {"plain": plain, "unlabelled": unlabelled, "whole": config_of(1)}
    return {name: saved(folder / name, config) for name, config in found.items()}


def test_runs_that_are_no_chain_are_one_line(runs, others):
    def said(*chain):
        return refusal(lambda: opened(list(chain)))

    assert said(runs[0], others["plain"]).startswith(f"{others['plain']} is told no image of low")
    assert said(runs[0], runs[2]) == f"{runs[2]} draws 8 x 8 of 4 x 4, but {runs[0]} draws 2 x 2"
    assert said(others["whole"], runs[2]).endswith("draws 8 x 8")
    assert f"is told a label, which {others['unlabelled']} is not" in said(
        others["unlabelled"], runs[2]
    )
    last = config_of(1, TOLD, use("augmentation"))
    last.data.flip = False
    assert "name it after augmentation" in refusal(build, last)
    first, last = cascade.configs_of(runs[:2])
    first.data.shape = (2, 2, 3)
    channels = refusal(lambda: cascade.check_link(runs[0], first, runs[1], last))
    assert channels == f"{runs[0]} draws images of 3 channels and {runs[1]} of 1"
    first, last = cascade.configs_of(runs[:2])
    first.diffusion.loss = "autoencoding"
    said_of_it = refusal(lambda: cascade.check_link(runs[0], first, runs[1], last))
    assert said_of_it.startswith("chains are of a diffusion model; this run's is an autoencoder")
    last.sampling.half_until = -2.0
    assert "half_until does not go with low" in refusal(build, last)
    first, last = cascade.configs_of(runs[:2])
    first.data.num_classes = 5
    labels = refusal(lambda: cascade.check_link(runs[0], first, runs[1], last))
    assert labels == f"{runs[0]} is told 5 labels and {runs[1]} 10"


def test_words_of_a_chain_that_are_wrong_are_one_line(runs, others, tmp_path):
    chain = ",".join(map(str, runs[:2]))
    for words, message in [
        (("--workdir", chain, "--stage=3:sampling.steps=4"), "--stage=3:sampling.steps=4 is no"),
        (("--workdir", chain, "--stage=1:sampling.step=4"), "did you mean 'sampling.steps'?"),
        (("--workdir", chain, "--stage=2:sampling.label=4"), "is that of all stages"),
        (("--workdir", chain, "--stage=1:seed=4"), "settings, not seed: 0 -> 4"),
        (("--workdir", chain, "--config", "experiments/digits.py"), "takes no --config"),
        (("--workdir", f"{tmp_path}/none,{runs[1]}"), "none holds no run, of which a chain"),
        (("--workdir", chain, "--config.sampling.gif"), "are of one run, not of a chain"),
        (("--workdir", runs[0], "--stage=1:sampling.steps=4"), "--stage is of a chain of runs"),
    ]:
        with pytest.raises(UserError) as error:
            main_run("sample", *words)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert not (runs[1] / "samples").exists()
    with pytest.raises(UserError, match="--workdir must be one folder"):
        main_run("evaluate", "--workdir", chain, "--images=test", "--against=train")
    with pytest.raises(UserError, match="is of a run that is told an image of low"):
        main_run("edit", "--workdir", runs[0], "--config.editing.task=super_resolution")
    np.savez(tmp_path / "large.npz", images=np.zeros((1, 8, 8, 1), np.uint8))
    file = f"--config.editing.images={tmp_path / 'large.npz'}"
    with pytest.raises(UserError, match=r"shape \('N', 4, 4, 1\), not uint8 \(1, 8, 8, 1\)"):
        main_run("edit", "--workdir", runs[2], "--config.editing.task=super_resolution", file)
