"""The command line: commands and flags from files, and the page of help."""

import types

import pytest
from tiny import run_command

from diffusion_jax.core.errors import UserError
from diffusion_jax.runs import command_line
from diffusion_jax.runs.command_line import Flag, Needs, find, help_page, names, parse, words_of

COMMANDS = [
    "data",
    "edit",
    "evaluate",
    "export-weights",
    "figures",
    "import",
    "list",
    "nll",
    "plan",
    "rate",
    "sample",
    "train",
]


def command(flags=None, needs=None):
    """A command's module."""
    found = types.SimpleNamespace(FLAGS=flags or {})
    if needs is not None:
        found.NEEDS = needs
    return found


def test_every_file_is_a_command_of_its_name():
    assert set(COMMANDS) <= names().keys()
    for name in names():
        module = find(name)
        assert callable(module.run), name
        for flag in getattr(module, "FLAGS", {}).values():
            assert flag.text, name


def test_help_lists_every_command_with_what_it_does():
    page = help_page("What the program is.")
    assert page.startswith("What the program is.")
    for name in names():
        summary = (find(name).__doc__ or "").splitlines()[0]
        assert f"  {name:<16}{summary}" in page
        assert summary.endswith("."), name
        assert f"python main.py {name}" in page or f"python main.py [{name}]" in page, name


def test_help_is_the_page_of_commands():
    done = run_command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "python main.py sample" in done.stdout


@pytest.mark.parametrize(
    ("name", "near"),
    [("trian", "train"), ("smaple", "sample"), ("export_weights", "export-weights"), ("nl", "nll")],
)
def test_an_unknown_command_is_answered_with_the_nearest(name, near):
    with pytest.raises(UserError, match=f"^unknown command '{name}'; did you mean '{near}'\\?$"):
        find(name)


def test_an_unknown_command_unlike_any_is_answered_with_all():
    with pytest.raises(UserError, match="unknown command 'xyzzy'; known: compare, data, "):
        find("xyzzy")


FLAGS = {
    "images": Flag("", "a set"),
    "count": Flag(3, "a number"),
    "quick": Flag(False, "a switch"),
}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--images a", {"images": "a"}),
        ("--images=a=b", {"images": "a=b"}),
        ("--count -1", {"count": "-1"}),
        ("--quick", {"quick": "true"}),
        ("--noquick", {"quick": "false"}),
        ("--quick --images a", {"quick": "true", "images": "a"}),
        ("--config.sampling.label -1", {"config.sampling.label": "-1"}),
        ("--config.sampling.gif", {"config.sampling.gif": "true"}),
        ("--config.sampling.gif --count 2", {"config.sampling.gif": "true", "count": "2"}),
        ("--noconfig.sampling.ema", {"config.sampling.ema": "false"}),
        ("--config.seed=1 --config.seed=2", {"config.seed": "2"}),
    ],
)
def test_words(words, found):
    assert words_of(words.split(), FLAGS) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--imagse a", "unknown flag --imagse; did you mean 'images'?"),
        ("--images", "--images needs a value, as in --images=VALUE"),
        ("--images --count 2", "--images needs a value"),
        ("images", "unexpected 'images'; settings are written --config.FIELD=VALUE"),
        ("--", "unexpected '--'"),
        ("-h", "unexpected '-h'"),
        ("--noimages", "unknown flag --noimages"),
    ],
)
def test_words_that_are_none(words, message):
    with pytest.raises(UserError) as error:
        words_of(words.split(), FLAGS)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--count two", "--count must be a whole number, not 'two'"),
        ("--quick=maybe", "--quick must be true or false, not 'maybe'"),
    ],
)
def test_flags_of_the_wrong_kind(words, message):
    with pytest.raises(UserError) as error:
        parse(words.split(), command(FLAGS, Needs(nothing=True)))
    assert str(error.value) == message


def test_a_command_has_its_flags_with_their_defaults():
    given = parse(["--count", "5"], command(FLAGS, Needs(nothing=True)))
    assert given.flags == {"images": "", "count": 5, "quick": False}


def test_what_a_command_needs(tmp_path):
    required = {"weights": Flag("", "a file", "the file of the weights")}
    with pytest.raises(UserError, match="--workdir is missing"):
        parse([], command())
    with pytest.raises(UserError, match="--config is missing: the experiment, .*; or --workdir:"):
        parse([], command(needs=Needs(workdir=False)))
    with pytest.raises(UserError, match="--weights is missing: the file of the weights"):
        parse(["--workdir", str(tmp_path)], command(required))
    with pytest.raises(UserError, match="--config is missing: the experiment that is meant"):
        parse(["--workdir", str(tmp_path)], command(needs=Needs(config=True)))
    with pytest.raises(UserError, match="holds no run; start one with --config"):
        parse(["--workdir", str(tmp_path)], command())
    alone = command(FLAGS, Needs(alone=("images",)))
    found = parse(["--workdir", str(tmp_path), "--images", "a"], alone)
    assert not found.declared
    shape = "--config.data.shape=4,4,3"
    found = parse(["--workdir", str(tmp_path), "--images", "a", shape], alone)
    assert found.declared and found.config.data.shape == (4, 4, 3)


def test_a_misspelt_setting_is_said_before_a_missing_flag():
    with pytest.raises(UserError, match="did you mean 'sampling.steps'?"):
        parse(["--config.sampling.step=3"], command())


def test_every_command_says_how_it_is_called():
    for name, path in names().items():
        assert path == command_line.COMMANDS / f"{find(name).__name__.rpartition('.')[2]}.py", name
