"""Experiment files: what they may import, and what is said where one fails."""

import importlib
import pathlib
import sys
import typing

import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.experiment_file import read


def write(path: pathlib.Path, text: str, encoding: str = "utf-8") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


RETURNS = "def get_config():\n    return {}\n"


@pytest.mark.parametrize(
    "line", ["import base as other", "from base import get_config", "from experiments import base"]
)
def test_a_file_imports_its_neighbour_from_any_working_directory(tmp_path, monkeypatch, line):
    monkeypatch.chdir("/")
    write(tmp_path / "experiments" / "base.py", RETURNS.format("'the base'"))
    name = line.split()[-1]
    call = "get_config()" if name == "get_config" else f"{name}.get_config()"
    body = f"{line}\nmade = {call}\n" + RETURNS.format("made")
    assert read(write(tmp_path / "experiments" / "own.py", body)) == "the base"


def test_a_neighbour_is_imported_within_get_config_too(tmp_path):
    write(tmp_path / "helper" / "__init__.py", "")
    write(tmp_path / "helper" / "numbers_of.py", "SEVEN = 7\n")
    body = "def get_config():\n    from helper.numbers_of import SEVEN\n    return SEVEN\n"
    assert read(write(tmp_path / "own.py", body)) == 7


def test_files_and_neighbours_of_one_name_in_two_folders_are_their_own(tmp_path):
    read_from = []
    for folder in ("a/experiments", "b/experiments", "a/experiments"):
        write(tmp_path / folder / "base.py", f"NAME = {folder!r}\n")
        body = "import base\nfrom experiments import base as same\nclass Here: pass\n"
        own = write(
            tmp_path / folder / "own.py", body + RETURNS.format("base.NAME, same.NAME, Here")
        )
        read_from.append(read(own))
    (one, same, first), (two, as_two, second), (three, _, _) = read_from
    assert (one, same, two, as_two) == ("a/experiments",) * 2 + ("b/experiments",) * 2
    assert three == "a/experiments"
    assert first.__module__ != second.__module__


def test_a_namespace_of_the_same_name_that_is_loaded_is_neither_used_nor_lost(
    tmp_path, monkeypatch
):
    write(tmp_path / "a" / "experiments" / "base.py", "NAME = 'a'\n")
    write(tmp_path / "b" / "experiments" / "base.py", "NAME = 'b'\n")
    for name in [n for n in sys.modules if n.partition(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "a"))
    before = importlib.import_module("experiments.base")
    text = "from experiments import base\n" + RETURNS.format("base.NAME")
    assert read(write(tmp_path / "b" / "experiments" / "own.py", text)) == "b"
    assert sys.modules["experiments.base"] is before
    for name in ("experiments.base", "experiments"):
        monkeypatch.delitem(sys.modules, name)


def test_what_was_imported_before_stays_and_the_path_too(tmp_path):
    path, loaded = list(sys.path), dict(sys.modules)
    write(tmp_path / "experiments" / "base.py", "import colorsys\n")
    body = "from experiments import base\n"
    read(write(tmp_path / "experiments" / "own.py", body + RETURNS.format("1")))
    assert sys.path == path
    assert {name: sys.modules.get(name) for name in loaded} == loaded
    assert "colorsys" in sys.modules  # no neighbour: another import would make it twice
    assert not [name for name in set(sys.modules) - set(loaded) if "experiments" in name]


def test_a_changed_neighbour_is_read_anew(tmp_path):
    own = write(tmp_path / "own.py", "import base\n" + RETURNS.format("base.VALUE"))
    write(tmp_path / "base.py", "VALUE = 1\n")
    assert read(own) == 1
    write(tmp_path / "base.py", "VALUE = 1 + 1\n")
    assert read(own) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_no_riddle(tmp_path, encoding):
    own = write(tmp_path / "own.py", RETURNS.format("'Größe'"), encoding)
    assert read(own) == "Größe"


def test_a_declared_encoding_is_kept(tmp_path):
    text = "# -*- coding: latin-1 -*-\n" + RETURNS.format("'Größe'")
    assert read(write(tmp_path / "own.py", text, "latin-1")) == "Größe"


def test_annotations_of_the_future_go_with_a_dataclass(tmp_path):
    text = """
from __future__ import annotations
import dataclasses
@dataclasses.dataclass
class Mine:
    size: int = 3
    other: Mine | None = None
get_config = Mine
"""
    made = read(write(tmp_path / "own.py", text))
    assert made.size == 3
    hints = typing.get_type_hints(type(made))  # which looks into the module
    assert hints["other"] == type(made) | None


def test_annotations_are_values_where_the_file_does_not_say_otherwise(tmp_path):
    text = "x: int = 3\n" + RETURNS.format("__annotations__")
    assert read(write(tmp_path / "own.py", text)) == {"x": int}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "has no function get_config()"),
        ("get_config = 3\n", "has no function get_config()"),
        ("import no_such\n", "ModuleNotFoundError: No module named 'no_such' (line 1)"),
        ("\n\nx = 1 / 0\n", "ZeroDivisionError: division by zero (line 3)"),
        ("def get_config():\n    return [][1]\n", "IndexError: list index out of range (line 2)"),
        ("def get_config(x):\n    return x\n", "TypeError: get_config() missing 1 required"),
        ("def get_config()\n", "SyntaxError: expected ':' (own.py, line 1)"),
        ("raise ValueError('two\\n  lines')\n", "ValueError: two lines (line 1)"),
        ("import sys\nsys.exit(1)\n", "SystemExit: 1 (line 2)"),
        ("assert False\n", "AssertionError (line 1)"),
    ],
)
def test_what_fails_is_one_line_with_file_and_cause(tmp_path, text, message):
    own = write(tmp_path / "own.py", text)
    loaded = set(sys.modules)
    with pytest.raises(UserError) as error:
        read(own)
    assert str(own) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not [name for name in set(sys.modules) - loaded if name.startswith("own")]


def test_an_error_for_the_user_passes_as_it_is(tmp_path):
    text = "from diffusion_jax.core.errors import UserError\nraise UserError('say it so')\n"
    with pytest.raises(UserError, match="^say it so$"):
        read(write(tmp_path / "own.py", text))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="none.py cannot be loaded: FileNotFoundError"):
        read(tmp_path / "none.py")
