"""The command line of diffusion_jax: every command is a file in diffusion_jax/commands/.

Any setting is overridden as --config.training.batch_size=64; a setting that names an entry of a
registry, --config.diffusion.schedule=edm, has that entry's arguments beneath it,
--config.diffusion.schedule.sigma_max=40. `python main.py list` prints them all.
"""

import os
import sys

from diffusion_jax.core.errors import Interrupted, UserError
from diffusion_jax.runs import start


def run(argv: list[str]) -> None:
    """argv: the program's name, a command or none, and flags."""
    from diffusion_jax.runs import command_line

    if "--help" in argv or "-h" in argv or "help" in argv[1:2]:
        print(command_line.help_page(__doc__ or ""))
        return
    name = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else "train"
    command = command_line.find(name)
    start.prepare()
    if said := command.run(command_line.parse(argv[1:], command)):
        print(said)


def main() -> int:
    start.streams()
    try:
        with start.explained_devices():
            run(sys.argv)
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        return getattr(stop, "status", 130)
    except BrokenPipeError:  # as of `main.py list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
