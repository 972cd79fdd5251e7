"""Flags: from the words of a command to a workdir and a Config."""

import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from diffusion_jax.config import Config, check_path, explain_value, load
from diffusion_jax.errors import UserError, nearest


def parse(argv: list[str]) -> tuple[pathlib.Path, Config]:
    """(workdir, config): the stored config where --config names none, and the overrides. UserError for what is wrong."""
    names = [arg.lstrip("-").partition("=")[0] for arg in argv if arg.startswith("-")]
    for name in names:
        if name.startswith("config."):
            check_path(Config(), name.removeprefix("config."))
        elif name not in ("workdir", "config"):
            raise UserError(f"unknown flag --{name}; {nearest(name, ('workdir', 'config'))}")
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the folder of the run", flag_values=values)
    values(argv, known_only=True)
    if not values["workdir"].value:
        raise UserError("--workdir is missing: the folder of the run, as in --workdir runs/digits")
    workdir = pathlib.Path(str(values["workdir"].value))
    if "config" not in names:
        stored = workdir / "config.json"
        if not stored.is_file():
            raise UserError(f"{workdir} holds no run; start one with --config experiments/NAME.py (see `main.py list`)")
        argv = [argv[0], f"--config={stored}", *argv[1:]]
    try:
        config_flags.DEFINE_config_dataclass("config", Config(), parse_fn=load, sys_argv=argv, flag_values=values)
        rest = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        raise UserError(explain_value(str(error))) from None
    if rest:
        raise UserError(f"unexpected {rest[0]!r}; settings are written --config.FIELD=VALUE")
    config: Any = values["config"].value
    return workdir, config
