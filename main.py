"""The command line of diffusion_jax.

  python main.py [train] --workdir DIR --config experiments/NAME.py    trains; the same command resumes
  python main.py sample --workdir DIR                                  draws from a trained run
  python main.py list                                                  what can be named, and every setting

Any setting is overridden as --config.training.batch_size=64; `sample` takes those that begin with --config.sampling.
"""

import os
import pathlib
import sys

import jax
from absl import flags

from diffusion_jax.command_line import parse
from diffusion_jax.errors import Interrupted, UserError, nearest

COMMANDS = ("train", "sample", "list")
EXPERIMENTS = pathlib.Path(__file__).resolve().parent / "experiments"


def run(argv: list[str]) -> None:
    """argv: the program's name, a command or none, and flags."""
    if "--help" in argv or "-h" in argv or "help" in argv[1:2]:
        print(__doc__)
        return
    command = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else "train"
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}; {nearest(command, COMMANDS)}")
    if command == "list":
        from diffusion_jax.catalog import catalog

        print(catalog(EXPERIMENTS))
        return
    workdir, config = parse(argv)
    if command == "train":
        from diffusion_jax.training.loop import train

        train(config, workdir)
    else:
        from diffusion_jax.generate import sample

        print(f"samples: {sample(config, workdir)}")


def main() -> int:
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # a second start compiles nothing
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "diffusion_jax"))
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
