"""Flags: from the words of a command to a workdir and a Config.

A command is a module of `diffusion_jax.commands`, found by its name: `export_weights.py` is
`export-weights`, `import_.py` is `import`. It has a docstring, whose first line says what it does
and whose lines `python main.py ...` show how; `run(given) -> str`, what is printed at the end; and,
where it needs them, `FLAGS`, its flags beside --workdir and --config, and `NEEDS`.
"""

import ast
import importlib
import math
import pathlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.settings import known_paths, load, override, unknown
from diffusion_jax.runs.workdir import workdir_path

COMMANDS = pathlib.Path(__file__).parents[1] / "commands"


class Flag(NamedTuple):
    """A flag of a command. default: its type is the flag's: text, a whole number, a number above 0,
    true and false, or () for texts, one each time that the flag is given."""

    default: str | int | float | bool | tuple
    text: str  # what it is, for `--help`
    required: str = ""  # the end of "--NAME is missing: " where it must be given


class Needs(NamedTuple):
    """What a command needs of --workdir and --config.

    workdir: whether it must be given where --config is. config: whether --config must be given;
    otherwise the workdir's config.json is meant. alone: flags beside which a run is not needed.
    chain: whether --workdir may name several runs, one after the other, with commas between.
    own: whether the command makes its config itself, and sets in it what the command line says.
    """

    workdir: bool = True
    config: bool = False
    nothing: bool = False  # neither of them, nor any other flag
    alone: tuple[str, ...] = ()
    chain: bool = False
    own: bool = False


class Given(NamedTuple):
    """What a command was told.

    config: where there is none, of a run or by --config, it holds the defaults, and `declared` says
    whether data.shape was given. flags: those of the command's FLAGS, with their defaults. Of a
    chain of runs `chain` has the folders, of which `workdir` is the last, and `settings` what the
    command line sets, path -> text; `config` is the last run's own, or that of --config. A command
    that makes its config itself has `settings`, too, and `declared` says whether there is a
    --config.
    """

    workdir: pathlib.Path
    config: Config
    flags: Mapping[str, Any]
    declared: bool = True
    chain: tuple[pathlib.Path, ...] = ()
    settings: Mapping[str, str] = types.MappingProxyType({})


def names() -> dict[str, pathlib.Path]:
    """Command -> its file."""
    files = sorted(path for path in COMMANDS.glob("*.py") if path.stem != "__init__")
    return {path.stem.rstrip("_").replace("_", "-"): path for path in files}


def find(name: str) -> types.ModuleType:
    """The module of a command; UserError with the nearest for an unknown one."""
    known = names()
    if name not in known:
        raise UserError(f"unknown command {name!r}; {nearest(name, known)}")
    return importlib.import_module(f"diffusion_jax.commands.{known[name].stem}")


def help_page(docstring: str) -> str:
    """The program's docstring, and every command's first line and usage, from its file."""
    lines = [docstring.strip(), ""]
    for name, path in names().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        stripped = (line.strip() for line in text.splitlines())
        usage = [line for line in stripped if line.startswith("python main.py")]
        lines += [f"  {name:<16}{text.splitlines()[0]}", *(f"  {'':<16}{line}" for line in usage)]
    return "\n".join(lines)


def words_of(argv: list[str], flags: Mapping[str, Flag]) -> dict[str, str]:
    """Flag -> its text, of words such as --name=text, --name text, --switch and --noswitch."""
    switches = {name for name, flag in flags.items() if isinstance(flag.default, bool)}
    found, words = {}, list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise UserError(f"unexpected {word!r}; settings are written --config.FIELD=VALUE")
        name, equals, text = word[2:].partition("=")
        known = name.startswith("noconfig.") or name[2:] in switches
        if name.startswith("no") and known and not equals:
            name, text = name[2:], "false"
        elif not name.startswith("config.") and name not in flags:
            raise UserError(f"unknown flag --{name}; {nearest(name, flags)}")
        elif not equals and name in switches:
            text = "true"
        elif not equals:
            if not words or words[0].startswith("--"):
                if name.startswith("config."):
                    text = "true"  # a switch among the settings
                else:
                    raise UserError(f"--{name} needs a value, as in --{name}=VALUE")
            else:
                text = words.pop(0)
        several = name in flags and flags[name].default == ()
        found[name] = f"{found[name]}\n{text}" if several and name in found else text
    return found


def value_of(name: str, flag: Flag, text: str) -> Any:
    """What a flag's text stands for; of one that is given several times, a line each."""
    if isinstance(flag.default, tuple):
        return tuple(text.split("\n"))
    if isinstance(flag.default, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise UserError(f"--{name} must be true or false, not {text!r}")
        return text.lower() in ("true", "1")
    if isinstance(flag.default, int):
        try:
            return int(text)
        except ValueError:
            raise UserError(f"--{name} must be a whole number, not {text!r}") from None
    if isinstance(flag.default, float):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0.0 < value < math.inf:
            raise UserError(f"--{name} must be a number above 0, not {text!r}")
        return value
    return text


def parse(argv: list[str], command: types.ModuleType) -> Given:
    """The flags of a command; UserError for what is wrong."""
    own: dict[str, Flag] = getattr(command, "FLAGS", {})
    needs: Needs = getattr(command, "NEEDS", Needs())
    common = {"workdir": Flag("", "the folder of the run"), "config": Flag("", "an experiment")}
    flags = own if needs.nothing else common | own
    texts = words_of(argv, flags)
    settings = {n.removeprefix("config."): t for n, t in texts.items() if n.startswith("config.")}
    values = {name: value_of(name, flag, texts[name]) if name in texts else flag.default
              for name, flag in own.items()}  # fmt: skip
    if needs.nothing:
        return Given(pathlib.Path(), Config(), values)
    workdir, file = texts.get("workdir", ""), texts.get("config", "")
    config, declared = Config(), True
    check_names(settings)  # a misspelt setting is said before a missing flag
    if not workdir and (needs.workdir or not file):
        hint = "the folder of the run, as in --workdir runs/digits"
        if not needs.workdir:
            raise UserError(
                "--config is missing: the experiment, as in --config experiments/digits.py; "
                f"or --workdir: {hint}"
            )
        raise UserError(f"--workdir is missing: {hint}")
    for name, flag in own.items():
        if flag.required and not values[name]:
            raise UserError(f"--{name} is missing: {flag.required}")
    chain = chain_of(workdir) if needs.chain else ()
    folder = chain[-1] if chain else workdir_path(workdir) if workdir else pathlib.Path()
    stored = folder / "config.json"
    if file:
        config = load(file)
    elif needs.own:
        declared = False
    elif needs.config:
        raise UserError(
            "--config is missing: the experiment that is meant, as in --config "
            "experiments/cosine.py"
        )
    elif any(values.get(name) for name in needs.alone) and not stored.is_file():
        declared = "data.shape" in settings
    elif not stored.is_file():
        raise UserError(
            f"{folder} holds no run; start one with --config experiments/NAME.py "
            "(see `main.py list`)"
        )
    else:
        config = load(stored)
    if chain or needs.own:
        return Given(folder, config, values, declared, chain, settings)
    override(config, settings)
    return Given(folder, config, values, declared)


def chain_of(text: str) -> tuple[pathlib.Path, ...]:
    """The folders of a chain of runs, runs/base,runs/sr; none where the text is one folder."""
    if "," not in text or pathlib.Path(text).exists():
        return ()
    return tuple(workdir_path(part.strip()) for part in text.split(","))


def check_names(settings: Mapping[str, str]) -> None:
    """Raises UserError for settings that no config has, whatever entries it names."""
    for path in settings:
        if path not in known_paths():
            raise unknown(path)
