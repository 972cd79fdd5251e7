"""The command line of diffusion_jax.

  python main.py [train] --workdir DIR --config experiments/NAME.py    trains; the same command resumes
  python main.py sample --workdir DIR                                  draws from a trained run
  python main.py list                                                  what can be named, and every setting

Any setting is overridden as --config.training.batch_size=64; `sample` takes those that begin with --config.sampling.
"""

import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from diffusion_jax import config as configs
from diffusion_jax.errors import Interrupted, UserError, nearest

COMMANDS = ("train", "sample", "list")
EXPERIMENTS = pathlib.Path(__file__).resolve().parent / "experiments"
WORKDIR = flags.DEFINE_string("workdir", None, "the folder of the run")


def parse(argv: list[str]) -> tuple[pathlib.Path, configs.Config]:
    """(workdir, config): the stored config where --config names none, and the overrides. UserError for what is wrong."""
    flags.FLAGS(argv, known_only=True)
    if not WORKDIR.value:
        raise UserError("--workdir is missing: the folder of the run, as in --workdir runs/digits")
    workdir = pathlib.Path(WORKDIR.value)
    for arg in argv:
        if arg.lstrip("-").startswith("config."):
            configs.check_path(configs.Config(), arg.lstrip("-").removeprefix("config.").partition("=")[0])
    if not any(arg.lstrip("-").partition("=")[0] == "config" for arg in argv):
        stored = workdir / "config.json"
        if not stored.is_file():
            raise UserError(f"{workdir} holds no run; start one with --config experiments/NAME.py (see `main.py list`)")
        argv = [argv[0], f"--config={stored}", *argv[1:]]
    value = config_flags.DEFINE_config_dataclass("config", configs.Config(), parse_fn=configs.load, sys_argv=argv)
    rest = flags.FLAGS(argv)[1:]
    if rest:
        raise UserError(f"unexpected {rest[0]!r}; settings are written --config.FIELD=VALUE")
    return workdir, value.value


def run(argv: list[str]) -> None:
    """argv: the program's name, a command or none, and flags."""
    if "--help" in argv or "-h" in argv or "help" in argv[1:2]:
        return print(__doc__)
    command = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else "train"
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}; {nearest(command, COMMANDS)}")
    if command == "list":
        from diffusion_jax.catalog import catalog

        return print(catalog(EXPERIMENTS))
    workdir, config = parse(argv)
    if command == "train":
        from diffusion_jax.training.loop import train

        train(config, workdir)
    else:
        from diffusion_jax.generate import sample

        print(f"samples: {sample(config, workdir)}")


def main() -> int:
    cache = pathlib.Path.home() / ".cache" / "diffusion_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))  # a second start compiles nothing
    try:
        run(sys.argv)
    except (UserError, flags.Error) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except Interrupted as stop:
        return stop.status
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
