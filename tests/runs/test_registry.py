"""Registries: an entry's signature is the one place of its settings, which a config sets."""

from typing import Annotated, Literal

import pytest
from tiny import tiny_config

from diffusion_jax.core import schedules
from diffusion_jax.core.components import component
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.settings import FREE, TRAINING
from diffusion_jax.core.types import Schedule, Variance
from diffusion_jax.runs import registries, values
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.registry import Registry, arguments, bound, make, meanings, settings, use
from diffusion_jax.runs.settings import as_values, differences, from_values, leaves, override


def waves(
    schedule: Schedule,
    count: int = 3,
    height: float = 0.5,
    shape: Literal["sine", "saw"] = "sine",
    sizes: tuple[int, ...] = (1, 2),
    ends: tuple[float, ...] | None = None,
    quick: Annotated[bool, FREE] = False,
    loss: Annotated[float, TRAINING] = 0.0,
    variance: Variance = "fixed_small",
) -> tuple:
    """A factory with a setting of every kind.

    Args:
      count: how many,
        told in two lines.
      height: of each.
      shape: of each.
      sizes: of the parts.
      ends: where they lie.
      quick: no other result.
      loss: in training.
      variance: of the model.

    Returns: nothing of note.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    return schedule, count, height, shape, sizes, ends, quick, loss, variance


WAVES = Registry("room.waves", {"waves": waves, "waver": waves}, optional=True)


def test_settings_are_the_plain_arguments_with_their_defaults_and_meanings():
    found = settings(WAVES, "waves")
    assert list(found) == ["count", "height", "shape", "sizes", "ends", "quick", "loss", "variance"]
    assert [found[name].kind for name in ("count", "height", "shape", "sizes", "ends")] == [
        int, float, ("sine", "saw"), (int,), (float,),
    ]  # fmt: skip
    assert found["count"].default == 3
    assert found["count"].doc == "how many, told in two lines."
    assert found["variance"].doc == "of the model."  # what follows the block is none of it
    assert found["ends"].optional and not found["sizes"].optional
    assert found["quick"].mark == FREE and found["loss"].mark == TRAINING
    assert found["variance"].own and found["variance"].default is None
    assert settings(WAVES, "none") == {}
    assert "Returns" not in meanings(waves)


def test_nouns_are_given_by_type_and_settings_by_the_config():
    schedule, mine = schedules.cosine(20), use("waves", count=5, ends=[0.5, 2.0])
    nouns = {Schedule: schedule, Variance: "fixed_large"}
    found = make(bound(WAVES, mine), nouns)
    assert found == (schedule, 5, 0.5, "sine", (1, 2), (0.5, 2.0), False, 0.0, "fixed_large")
    asked = make(bound(WAVES, use("waves", variance="fixed_small")), nouns)
    assert asked[-1] == "fixed_small"  # a config comes before the run
    assert make(bound(WAVES, "waves"), {Schedule: schedule})[-1] == "fixed_small"
    assert make(bound(WAVES, "none"), {}) is None
    with pytest.raises(
        UserError, match="room.waves: waves needs schedule, which this run does not"
    ):
        make(bound(WAVES, "waves"), {})


def test_what_a_factory_refuses_is_named_with_its_field():
    with pytest.raises(UserError, match=r"^config.room.waves: count must be at least 1, not 0$"):
        make(bound(WAVES, use("waves", count=0)), {Schedule: schedules.cosine(20)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 1.5}, "config.room.waves.count must be a whole number, not 1.5"),
        ({"count": True}, "config.room.waves.count must be a whole number, not True"),
        ({"height": "high"}, "config.room.waves.height must be a number, not 'high'"),
        ({"height": float("inf")}, "config.room.waves.height must be finite, not inf"),
        ({"shape": "sinus"}, "config.room.waves.shape has no 'sinus'; did you mean 'sine'?"),
        ({"sizes": 3}, "config.room.waves.sizes must be whole numbers such as 1,2,2, not 3"),
        ({"sizes": [1, 2.5]}, "config.room.waves.sizes must be whole numbers"),
        ({"sizes": None}, "config.room.waves.sizes must be whole numbers"),
        ({"ends": (0.0, float("nan"))}, "config.room.waves.ends must be finite"),
        ({"quick": 1}, "config.room.waves.quick must be true or false, not 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_one_line(given, message):
    with pytest.raises(UserError) as error:
        make(bound(WAVES, use("waves", **given)), {Schedule: schedules.cosine(20)})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_whole_numbers_are_numbers():
    found = make(bound(WAVES, use("waves", height=2, ends=(0, 1))), {Schedule: "a schedule"})
    assert found[2] == 2.0 and found[5] == (0, 1)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("count", "7", 7),
        ("height", "-0.8", -0.8),
        ("height", "1e-3", 1e-3),
        ("shape", "saw", "saw"),
        ("sizes", "1,2,4", (1, 2, 4)),
        ("sizes", "(3, 5)", (3, 5)),
        ("sizes", "", ()),
        ("ends", "none", None),
        ("ends", "0.3,3", (0.3, 3.0)),
        ("quick", "true", True),
        ("quick", "False", False),
    ],
)
def test_words_of_the_command_line(name, text, value):
    assert values.parse(f"room.waves.{name}", settings(WAVES, "waves")[name], text) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("count", "seven", "config.room.waves.count must be a whole number, not 'seven'"),
        ("sizes", "1,x", "config.room.waves.sizes must be whole numbers such as 1,2,2, not '1,x'"),
        ("quick", "maybe", "config.room.waves.quick must be true or false, not 'maybe'"),
    ],
)
def test_words_that_stand_for_no_value(name, text, message):
    with pytest.raises(UserError, match=message):
        values.parse(f"room.waves.{name}", settings(WAVES, "waves")[name], text)


def test_an_unknown_entry_or_argument_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="config.room.waves has no 'wave'; did you mean 'wave[sr]'"):
        bound(WAVES, "wave")
    with pytest.raises(UserError, match="waves has no argument 'heigth'; did you mean 'height'?"):
        bound(WAVES, use("waves", heigth=1.0))
    with pytest.raises(UserError, match="waves has no argument 'schedule'"):
        bound(WAVES, use("waves", schedule=1.0))  # a noun is no setting
    with pytest.raises(UserError, match="must name an entry, not 3"):
        bound(WAVES, 3)


def test_arguments_are_attributes_that_read_as_the_call():
    mine = bound(WAVES, use("waves", count=5))
    assert (mine.entry, mine.count, mine.height) == ("waves", 5, 0.5)
    mine.height = 2.0
    assert mine.values()["height"] == 2.0
    assert repr(mine).startswith("waves(count=5, height=2.0, shape='sine', sizes=(1, 2), ends=None")
    with pytest.raises(UserError, match="waves has no argument 'hight'; did you mean 'height'?"):
        mine.hight = 3.0
    with pytest.raises(UserError, match="waves has no argument 'wide'"):
        _ = mine.wide


def test_equal_settings_are_equal_components_whether_given_or_default():
    assert bound(WAVES, use("waves", count=3)) == bound(WAVES, "waves")
    assert bound(WAVES, use("waves", count=4)) != bound(WAVES, "waves")
    assert bound(WAVES, "waves") != bound(WAVES, "waver")
    assert use("waves", count=4) == use("waves", count=4)


def test_equal_calls_of_a_factory_are_one_object():
    mine, theirs = (bound(registries.REGISTRIES["diffusion.schedule"], one)
                    for one in ("edm", use("edm", sigma_max=80)))  # fmt: skip
    assert make(mine, {}) is make(theirs, {})
    assert "edm(" in repr(make(mine, {})) and "sigma_max=80.0" in repr(make(mine, {}))


@pytest.mark.parametrize("path", registries.REGISTRIES)
def test_every_setting_of_every_entry_has_a_meaning_and_a_default(path):
    own = registries.REGISTRIES[path]
    for name in own.names():
        for setting in settings(own, name).values():
            assert setting.doc, f"{path}={name}: {setting.name} has no line in Args:"
        factory = own.factory(name)
        if factory is not None:
            assert (factory.__doc__ or "").strip(), f"{path}={name} has no docstring"
            known = {argument.name for argument in arguments(factory)}
            assert meanings(factory).keys() <= known, f"{path}={name}: Args: names no argument"
            for argument in arguments(factory)[own.positional :]:
                given = argument.setting is not None and not argument.setting.own
                assert not (given and argument.required), (
                    f"{path}={name}.{argument.name}: a default"
                )


@pytest.mark.parametrize("path", registries.REGISTRIES)
def test_every_entry_goes_through_a_config_and_its_json(path):
    for name in registries.REGISTRIES[path].names():
        config = Config()
        override(config, {path: name})
        again = from_values(as_values(config))
        assert again == config and differences(config, again) == []


def test_a_new_entrys_arguments_are_settings_the_moment_it_exists(monkeypatch):
    @component
    def steep(num_steps: int = 20, power: float = 2.0, rough: Annotated[bool, FREE] = False):
        """A schedule of a user's own.

        Args:
          num_steps: T.
          power: how steep, above 0.
          rough: changes nothing that is trained.
        """
        if power <= 0:
            raise ValueError(f"power must be above 0, not {power}")
        return schedules.cosine(num_steps, s=0.008 * power)

    monkeypatch.setitem(schedules.SCHEDULES, "steep", steep)
    config = tiny_config()
    override(config, {"diffusion.schedule": "steep", "diffusion.schedule.power": "3"})
    found, expected = build(config).schedule.level(7), schedules.cosine(20, s=0.024).level(7)
    assert tuple(map(float, found)) == tuple(map(float, expected))
    assert from_values(as_values(config)) == config
    paths = {leaf.path: leaf.value for leaf in leaves(config)}
    assert paths["diffusion.schedule.power"] == 3.0
    other = from_values(as_values(config))
    other.diffusion.schedule.rough, other.diffusion.schedule.power = True, 4.0
    assert differences(config, other) == ["diffusion.schedule.power: 3.0 -> 4.0"]
    override(config, {"diffusion.schedule.power": "-1"})
    with pytest.raises(
        UserError, match="^config.diffusion.schedule: power must be above 0, not -1"
    ):
        build(config)
    with pytest.raises(UserError, match="steep has no argument 'powr'; did you mean 'power'?"):
        config.diffusion.schedule.powr = 1.0
