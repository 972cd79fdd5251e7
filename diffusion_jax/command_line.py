"""Flags: from the words of a command to a workdir and a Config."""

import pathlib
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from diffusion_jax.config import Config, check_path, explain_value, load
from diffusion_jax.errors import UserError, nearest


class Given(NamedTuple):
    """What a command was told. weights: the file of `import` and `export-weights`, empty for other commands."""

    workdir: pathlib.Path
    config: Config
    weights: str
    new_attention_order: bool


def parse(argv: list[str], stored: bool = True, weights: bool = False) -> Given:
    """The flags of a command; UserError for what is wrong.

    argv: the program's name and flags. stored: where --config is not given, the workdir's config.json is meant. weights:
    the command takes --weights, too, and must have it.
    """
    known = ("workdir", "config") + (("weights", "new_attention_order") if weights else ())
    names = [arg.lstrip("-").partition("=")[0] for arg in argv if arg.startswith("-")]
    for name in names:
        if name.startswith("config."):
            check_path(Config(), name.removeprefix("config."))
        elif name not in known:
            raise UserError(f"unknown flag --{name}; {nearest(name, known)}")
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "the folder of the run", flag_values=values)
    flags.DEFINE_string("weights", "", "a file of weights", flag_values=values)
    flags.DEFINE_bool("new_attention_order", False, "q, k and v outermost in its attention", flag_values=values)
    value = lambda name: values[name].value  # before all flags are known
    values(argv, known_only=True)
    if not value("workdir"):
        raise UserError("--workdir is missing: the folder of the run, as in --workdir runs/digits")
    if weights and not value("weights"):
        raise UserError("--weights is missing: the file of the weights")
    workdir = pathlib.Path(str(value("workdir")))
    if "config" not in names:
        file = workdir / "config.json"
        if not stored:
            raise UserError("--config is missing: the experiment that the weights are of, as in --config experiments/cosine.py")
        if not file.is_file():
            raise UserError(f"{workdir} holds no run; start one with --config experiments/NAME.py (see `main.py list`)")
        argv = [argv[0], f"--config={file}", *argv[1:]]
    try:
        config_flags.DEFINE_config_dataclass("config", Config(), parse_fn=load, sys_argv=argv, flag_values=values)
        rest = values(argv)[1:]
    except flags.IllegalFlagValueError as error:
        raise UserError(explain_value(str(error))) from None
    if rest:
        raise UserError(f"unexpected {rest[0]!r}; settings are written --config.FIELD=VALUE")
    config: Any = value("config")
    if config.model.attention_resolutions == ("",):  # --config.model.attention_resolutions= takes attention away
        config.model.attention_resolutions = ()
    return Given(workdir, config, str(value("weights")), bool(value("new_attention_order")))
