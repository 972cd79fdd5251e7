"""Configs: how settings are set, checked, kept, and what a change of one means."""

import json

import pytest
from tiny import ROOT, tiny_config

from diffusion_jax.commands import train
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs import command_line
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config, use
from diffusion_jax.runs.settings import (
    as_values,
    check,
    copy,
    differences,
    from_values,
    leaves,
    load,
    other_network,
    override,
    to_json,
)

DIGITS = str(ROOT / "experiments" / "digits.py")


def given(*words):
    """The config of these words behind `main.py train`."""
    return command_line.parse(["--workdir", "new", "--config", DIGITS, *words], train).config


def changed(*pairs, start=None):
    config = copy(start or tiny_config())
    override(config, dict(pairs))
    return config


# How settings are set


def test_the_command_line_names_entries_and_their_arguments():
    config = given(
        "--config.diffusion.schedule.sigma_max=40",  # the order of the words does not matter
        "--config.diffusion.schedule=edm",
        "--config.diffusion.prediction=edm",
        "--config.diffusion.timesteps=lognormal",
        "--config.diffusion.timesteps.mean=-0.8",
        "--config.sampling.grid=karras",
        "--config.sampling.steps=20",
    )
    assert config.diffusion.schedule == use("edm", sigma_max=40.0)
    assert config.diffusion.timesteps == use("lognormal", mean=-0.8)
    parts = build(config)
    assert float(parts.schedule.level(parts.schedule.t_max).sigma) == pytest.approx(40.0)
    assert "mean=-0.8" in repr(parts.problem.timesteps)


def test_an_argument_alone_keeps_the_entry_and_the_same_name_keeps_the_arguments():
    config = changed(("diffusion.schedule", "cosine"), ("diffusion.schedule.s", "0.01"))
    assert config.diffusion.schedule == use("cosine", num_steps=20, s=0.01)
    config = changed(("diffusion.schedule", "linear"))
    assert config.diffusion.schedule.num_steps == 1000  # another entry begins with its defaults


def test_negative_numbers_and_switches_are_words_of_their_own():
    config = given(
        "--config.sampling.label", "-1", "--config.sampling.gif", "--noconfig.sampling.ema",
        "--config.sampling.guidance", "-0.5", "--config.sampling.strip",
    )  # fmt: skip
    sampling = config.sampling
    assert (sampling.label, sampling.gif, sampling.strip, sampling.ema) == (-1, True, True, False)
    assert sampling.guidance == -0.5
    assert given("--config.model.attention_resolutions=").model.attention_resolutions == ()


@pytest.mark.parametrize("last", ["sampler", "grid"])
def test_names_of_other_programs_are_understood_and_stored_as_ours(last):
    words = ["--config.sampling.sampler=DPM++ 2M SDE Heun Karras", "--config.sampling.steps=7"]
    config = given(*words)
    assert config.sampling.sampler == use("dpmpp_2m_sde", variant="heun")
    assert config.sampling.grid == use("karras")
    stored = json.loads(to_json(config))["sampling"]
    assert stored["sampler"] == {"entry": "dpmpp_2m_sde", "variant": "heun", "eta": 1.0}
    assert stored["grid"]["entry"] == "karras"
    # a grid of one's own holds, before or behind
    own = ["--config.sampling.grid=logsnr", "--config.sampling.sampler.eta=0.5"]
    config = given(*(own + words if last == "sampler" else words + own))
    assert config.sampling.sampler == use("dpmpp_2m_sde", variant="heun", eta=0.5)
    assert config.sampling.grid == use("logsnr")


def test_names_of_other_programs_in_python():
    config = Config()
    config.sampling.sampler = "Euler a"
    assert (config.sampling.sampler, config.sampling.grid.entry) == (
        use("euler_ancestral"),
        "respaced",
    )
    config.sampling.sampler = "LMS Karras"
    assert (config.sampling.sampler.entry, config.sampling.grid.entry) == ("lms", "karras")
    config.sampling.sampler = use("Euler a", eta=0.5)
    assert config.sampling.sampler == use("euler_ancestral", eta=0.5)
    with pytest.raises(UserError, match="has no 'Eler a'; did you mean 'Euler a'"):
        config.sampling.sampler = "Eler a"


def test_python_names_entries_by_a_word_or_by_use():
    config = Config()
    config.model = "mlp"
    config.model.width = 32
    config.diffusion.schedule = use("cosine", num_steps=50)
    assert (config.model.entry, config.model.width, config.model.depth) == ("mlp", 32, 4)
    assert config.diffusion.schedule.num_steps == 50
    with pytest.raises(UserError, match="config has no Training.batch_sise; did you mean 'batch_s"):
        config.training.batch_sise = 3


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("diffusion.schedule.nm_steps=5", "did you mean 'diffusion.schedule.num_steps'?"),
        (
            "diffusion.schedule.sigma_max=40",
            "cosine has no argument 'sigma_max'; known: num_steps, s",
        ),
        ("model.channel=3", "did you mean 'model.channels'?"),
        ("sampling.eta=0.5", "did you mean 'sampling.sampler.eta'?"),
        ("batch_size=3", "config has no field 'batch_size'; did you mean"),
        ("training=3", "config has no field 'training'"),
        ("diffusion.schedule.num_steps=many", "num_steps must be a whole number, not 'many'"),
        ("diffusion.schedule.s=-1", "config.diffusion.schedule: s must be at least 0, not -1"),
        ("training.optimizer.b1=1", "config.training.optimizer: b1 must be at least 0 and below 1"),
        ("training.ema_decay=1", "config.training.ema_decay must be at least 0 and below 1, not 1"),
        ("training.num_steps=0", "config.training.num_steps must be at least 1, not 0"),
        ("seed=-1", "config.seed must be at least 0 and below 2**32, not -1"),
        ("training.decay=cosin", "config.training.decay has no 'cosin'; did you mean 'cosine'?"),
        ("sampling.guidance=nan", "config.sampling.guidance must be finite, not nan"),
        ("sampling.ema=", "config.sampling.ema must be true or false, not ''"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(word, message):
    with pytest.raises(UserError) as error:
        build(given(f"--config.{word}"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Several entries in one field


def test_conditions_are_named_each_once_and_set_by_their_name():
    config = changed(
        ("conditioning", "label,augmentation"),
        ("conditioning.augmentation.probability", "0.15"),
        ("conditioning.label.dropout", "0.1"),
    )
    assert [one.entry for one in config.conditioning] == ["label", "augmentation"]
    assert config.conditioning.augmentation.probability == 0.15
    assert config.conditioning.label == use("label", dropout=0.1)
    assert repr(config.conditioning) == "[label(dropout=0.1), augmentation(probability=0.15)]"
    less = changed(("conditioning", "augmentation"), start=config)
    assert less.conditioning.augmentation.probability == 0.15  # who stays keeps its arguments
    assert list(changed(("conditioning", ""), start=config).conditioning) == []


def test_conditions_in_python():
    config = Config(conditioning=[use("label", dropout=0.2), "augmentation"])
    config.conditioning.augmentation.probability = 0.5
    assert config.conditioning == Config(
        conditioning=[use("label", dropout=0.2), use("augmentation", probability=0.5)]
    ).conditioning  # fmt: skip
    assert Config(conditioning=use("label", dropout=0.2)).conditioning.label.dropout == 0.2
    assert Config(conditioning=()).conditioning != Config().conditioning
    with pytest.raises(UserError, match="config.conditioning names an entry twice"):
        Config(conditioning=["label", "label"])
    with pytest.raises(
        UserError, match="config.conditioning has no 'lable'; did you mean 'label'?"
    ):
        Config(conditioning=["lable"])
    with pytest.raises(UserError, match="conditioning=label,augmentation"):
        Config().conditioning.augmentation.probability = 0.5
    with pytest.raises(UserError, match="label has no argument 'dropuot'; did you mean 'dropout'?"):
        Config().conditioning.label.dropuot = 0.5
    with pytest.raises(UserError, match="set config.conditioning itself, or an argument"):
        Config().conditioning.label = use("label", dropout=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["conditioning.augmentation.probability=0.5"], "add it: config.conditioning=label,augm"),
        (["conditioning=lable"], "config.conditioning has no 'lable'; did you mean 'label'?"),
        (["conditioning=label,label"], "names an entry twice"),
        (["conditioning.label.dropout=1"], "conditioning.label: dropout must be at least 0 and"),
        (["conditioning.label.drop=1"], "did you mean 'conditioning.label.dropout'?"),
        (["data.num_classes=0", "conditioning.label.dropout=0.1"], "dropout needs labels"),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be(words, message):
    with pytest.raises(UserError) as error:
        build(given(*(f"--config.{word}" for word in words)))
    assert message in str(error.value)


# What is kept


def test_json_gives_the_same_config_back(tmp_path):
    config = tiny_config()
    config.conditioning = [use("label", dropout=0.1), use("augmentation", probability=0.2)]
    config.sampling.sampler = use("ddim", eta=0.5)
    config.diffusion.weighting = "min_snr"
    (tmp_path / "config.json").write_text(to_json(config))
    again = load(tmp_path / "config.json")
    assert again == config and differences(config, again) == []
    assert again.model.channel_mult == (1,)  # a tuple, not JSON's list
    again.model.channels = 8
    assert config.model.channels == 16  # the two share nothing
    stored = json.loads(to_json(config))
    assert stored["sampling"]["sampler"] == {"entry": "ddim", "eta": 0.5}
    assert stored["model"]["heads"] == 1  # defaults are kept, too: they may change in the program


def test_a_stored_config_without_a_setting_takes_its_default(tmp_path):
    values = as_values(tiny_config())
    del values["training"]["freeze"], values["model"]["remat"], values["editing"]
    assert from_values(values) == tiny_config()
    values["training"]["frieze"] = ""
    with pytest.raises(UserError, match="no field 'training.frieze'; did you mean 'training.freez"):
        from_values(values)
    for text in ("{", "[]", '{"model": "unet"}', '{"model": {"width": 3}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json is no stored config"):
            load(tmp_path / "config.json")


def test_a_copy_is_a_config_of_its_own():
    config = tiny_config()
    other = copy(config)
    assert other == config
    other.conditioning.label.dropout, other.model.channels = 0.5, 8
    assert config == tiny_config()


def test_every_experiment_builds_and_goes_through_json():
    for path in sorted((ROOT / "experiments").glob("*.py")):
        config = load(path)
        assert from_values(json.loads(to_json(config))) == config
        check(config)


def test_every_field_has_a_meaning():
    for leaf in leaves(Config()):
        assert leaf.setting.doc, leaf.path
        assert leaf.argument or leaf.setting.kind is not None, leaf.path


# What a change means


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("model.remat", "true"),
        ("training.num_steps", "99"),
        ("training.checkpoint_every", "2"),
        ("sampling.sampler", "ddim"),
        ("sampling.sampler.variance", "fixed_large"),
        ("evaluation.num", "10"),
    ],
)
def test_what_may_change_in_a_workdir(path, text):
    assert differences(tiny_config(), changed((path, text))) == []


def test_the_place_of_data_may_change_and_the_data_may_not():
    config = changed(("data.source", "folder"), ("data.source.folder", "here"))
    moved = changed(("data.source.folder", "there"), ("data.source.cache", "true"), start=config)
    assert differences(config, moved) == []
    resized = changed(("data.source.resize", "stretch"), start=config)
    assert differences(config, resized) == ["data.source.resize: 'center_crop' -> 'stretch'"]


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("seed", "5", "seed: 0 -> 5"),
        ("model.channels", "32", "model.channels: 16 -> 32"),
        ("model.dropout", "0.2", "model.dropout: 0.1 -> 0.2"),
        ("diffusion.schedule.s", "0.01", "diffusion.schedule.s: 0.008 -> 0.01"),
        ("conditioning.label.dropout", "0.1", "conditioning.label.dropout: 0.0 -> 0.1"),
        ("training.optimizer.b1", "0.8", "training.optimizer.b1: 0.9 -> 0.8"),
        ("training.freeze", "conv", "training.freeze: '' -> 'conv'"),
    ],
)
def test_what_makes_another_experiment(path, text, said):
    assert differences(tiny_config(), changed((path, text))) == [said]


def test_another_entry_is_said_with_the_arguments_that_come_and_go():
    said = differences(tiny_config(), changed(("diffusion.schedule", "linear")))
    assert said[0] == "diffusion.schedule: 'cosine' -> 'linear'"
    assert "diffusion.schedule.num_steps: 20 -> 1000" in said
    assert "diffusion.schedule.s: 0.008 -> None" in said


def test_the_last_step_may_change_where_nothing_depends_on_it():
    decaying = tiny_config(decay="cosine")
    longer = changed(("training.num_steps", "99"), start=decaying)
    assert differences(decaying, longer) == ["training.num_steps: 8 -> 99"]


def test_what_makes_another_network():
    own = tiny_config()
    same = [
        ("model.dropout", "0.3"), ("model.remat", "true"), ("conditioning.label.dropout", "0.1"),
        ("seed", "3"), ("training.batch_size", "8"), ("diffusion.timesteps", "uniform"),
        ("sampling.sampler", "ddim"),
    ]  # fmt: skip
    for pair in same:
        assert other_network(own, changed(pair)) == [], pair
    for pair, said in (
        (("model.channels", "8"), "model.channels: 16 -> 8"),
        (("diffusion.prediction", "v"), "diffusion.prediction: 'eps' -> 'v'"),
        (("data.num_classes", "3"), "data.num_classes: 10 -> 3"),
        (("diffusion.schedule.num_steps", "30"), "diffusion.schedule.num_steps: 20 -> 30"),
        (("conditioning", "label,augmentation"), "conditioning: ('label',) -> ('label', 'augment"),
    ):
        assert other_network(own, changed(pair))[0].startswith(said)
