"""The command line of diffusion_jax.

  python main.py [train] --workdir DIR --config experiments/NAME.py    trains; the same command resumes
  python main.py sample --workdir DIR                                  draws from a trained run
  python main.py edit --workdir DIR                                    inpaints, varies, translates images ...
  python main.py nll --workdir DIR                                     its variational bound, in bits/dim
  python main.py evaluate --workdir DIR [--images SET] [--against SET]   FID and its kin, of the run or of any two sets
  python main.py rate --workdir DIR --images SET --against SET         a page on which people judge two sets blind; then
  python main.py rate --workdir DIR --ratings FILE[,FILE ...]          how often they chose which
  python main.py data --workdir DIR --config experiments/NAME.py       counts, sizes, labels and a picture of its data
  python main.py plan --config experiments/NAME.py [--device H100]     memory and FLOPs of a step, compiled but not run
  python main.py figures --workdir DIR [--config ...]                  the papers' figures, of a config or a run
  python main.py import --workdir DIR --config ... --weights FILE      a run from an Improved DDPM or ADM checkpoint
  python main.py export-weights --workdir DIR --weights FILE           and back, as .safetensors
  python main.py list                                                  what can be named, and every setting

Any setting is overridden as --config.training.batch_size=64; `sample` takes those that begin with
--config.sampling, `edit` also --config.editing, `nll` --config.likelihood, `evaluate` all but the
second. A SET is a folder, an .npz, an .npy or a split."""

import pathlib
import sys

from absl import flags

from diffusion_jax.core.errors import Interrupted, UserError, nearest
from diffusion_jax.runs import startup

COMMANDS = (
    "train",
    "sample",
    "edit",
    "nll",
    "evaluate",
    "rate",
    "data",
    "plan",
    "figures",
    "import",
    "export-weights",
    "list",
)


def run(argv: list[str]) -> None:
    """argv: the program's name, a command or none, and flags."""
    if "--help" in argv or "-h" in argv or "help" in argv[1:2]:
        print(__doc__)
        return
    command = argv.pop(1) if len(argv) > 1 and not argv[1].startswith("-") else "train"
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}; {nearest(command, COMMANDS)}")
    from diffusion_jax.commands import data as describe
    from diffusion_jax.commands import edit, evaluate, figures, nll, plan, rate
    from diffusion_jax.commands import list as catalog
    from diffusion_jax.commands import sample as generate
    from diffusion_jax.commands import train as loop
    from diffusion_jax.devices import cpu
    from diffusion_jax.interop import weights
    from diffusion_jax.runs import command_line

    cpu.tune()
    if command == "list":
        print(catalog.catalog(pathlib.Path(__file__).resolve().parent / "experiments"))
        return
    given = command_line.parse(argv, command)
    workdir, config = given.workdir, given.config
    if command == "train":
        loop.train(config, workdir)
    elif command in ("sample", "edit", "figures"):
        made = {"sample": generate.sample, "edit": edit.edit, "figures": figures.figures}[command](
            config, workdir
        )
        print(f"{command.removesuffix('s')}s: {made}")
    elif command in ("nll", "data"):
        print({"nll": nll.nll, "data": describe.describe}[command](config, workdir))
    elif command in ("evaluate", "plan", "rate"):
        print(
            {"evaluate": evaluate.command, "plan": plan.command, "rate": rate.command}[command](
                given
            )
        )
    elif command == "import":
        weights.import_weights(given.weights, config, workdir, given.new_attention_order)
        print(weights.on_trust(workdir))
    else:
        print(
            f"weights: {weights.export_weights(workdir, given.weights, config, given.new_attention_order)}"
        )


def main() -> int:
    startup.printable_output()
    startup.keep_compiled_programs()
    try:
        with startup.explained_devices():
            run(startup.joined_values(sys.argv))
    except (UserError, flags.Error) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        return getattr(stop, "status", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
