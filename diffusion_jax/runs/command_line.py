"""Flags: from the words of a command to a workdir and a Config."""

import pathlib
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from diffusion_jax.runs.config import Config, check_path, explain_value, load
from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.runs.workdir import workdir_path


class Given(NamedTuple):
    """What a command was told. weights, images, against, ratings, device, devices: flags of some
    commands, empty for others.

    config: where there is none, of a run or by --config, it holds the defaults, and an empty
    data.shape unless that is given. """

    workdir: pathlib.Path
    config: Config
    weights: str
    new_attention_order: bool
    images: str
    against: str
    ratings: str
    device: str
    devices: int


TEXTS = {"weights": "a file of weights", "images": "images to be judged", "against": "images to judge them by"}
TEXTS |= {"workdir": "the folder of the run", "ratings": "files of ratings, with commas between them"}
TEXTS |= {"device": "what a run is planned for, as in H100"}


EXTRA = {"evaluate": ("images", "against"), "rate": ("images", "against", "ratings"), "plan": ("device", "devices")}
EXTRA |= dict.fromkeys(("import", "export-weights"), ("weights", "new_attention_order"))


def parse(argv: list[str], command: str) -> Given:
    """The flags of a command; UserError for what is wrong.

    argv: the program's name and flags. Where --config is not given, the workdir's config.json is
    meant; `import` must be given one, and with --images or --ratings there need be none. `plan`
    writes nothing and needs no workdir beside a config. """
    known = ("workdir", "config", *EXTRA.get(command, ()))
    names = [arg.lstrip("-").partition("=")[0] for arg in argv if arg.startswith("-")]
    for name in names:
        if name.startswith("config."):
            check_path(Config(), name.removeprefix("config."))
        elif name not in known:
            raise UserError(f"unknown flag --{name}; {nearest(name, known)}")
    values = flags.FlagValues()
    for name, text in TEXTS.items():
        flags.DEFINE_string(name, "", text, flag_values=values)
    flags.DEFINE_bool("new_attention_order", False, "q, k and v outermost in its attention", flag_values=values)
    flags.DEFINE_integer("devices", 1, "how many of them share a batch", flag_values=values)
    value = lambda name: values[name].value  # before all flags are known
    values(argv, known_only=True)
    if command == "plan" and not value("workdir") and "config" not in names:
        raise UserError(
            "--config is missing: the experiment to plan, as in --config experiments/digits.py; or --workdir, of a run"
        )
    if command != "plan" and not value("workdir"):
        raise UserError("--workdir is missing: the folder of the run, as in --workdir runs/digits")
    if "weights" in known and not value("weights"):
        raise UserError("--weights is missing: the file of the weights")
    as_they_are, named = False, str(value("workdir"))
    workdir = workdir_path(named) if named else pathlib.Path()  # `plan` needs none
    if "config" not in names and (value("images") or value("ratings")) and not (workdir / "config.json").is_file():
        as_they_are = "config.data.shape" not in names
    elif "config" not in names:
        file = workdir / "config.json"
        if command == "import":
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
    if as_they_are:
        config.data.shape = ()
    words = {name: str(value(name)) for name in ("weights", "images", "against", "ratings", "device")}
    return Given(
        workdir=workdir,
        config=config,
        new_attention_order=bool(value("new_attention_order")),
        devices=int(value("devices")),  # pyright: ignore[reportArgumentType]
        **words,
    )
