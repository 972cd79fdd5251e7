"""Chooses the levels of a few steps from a trained run itself, by dynamic programming.

python main.py grid --workdir DIR --num_steps 8 [--fine 100] [--num 64]
"""

import itertools
import json

import jax
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.core.types import Level
from diffusion_jax.runs.checks import check_diffuses
from diffusion_jax.runs.command_line import Flag, Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.open import open_run
from diffusion_jax.samplers.chosen import best_levels, local_errors

FLAGS = {
    "num_steps": Flag(8, "the number of steps, network calls of ddim"),
    "fine": Flag(100, "levels of the fine chain that they are chosen of"),
    "num": Flag(64, "samples of the fine chain"),
}
ONLY = "grid takes only config.sampling.* settings"


def run(given: Given) -> str:
    """What `main.py grid` does with its flags: writes workdir/grids/<num_steps>.json and returns
    the settings that draw on these levels.

    The fine chain is DDIM's, on the run's grid or, where that is respaced or explicit, on the
    trailing one. Errors of a step are measured from it, so `fine` is several times `num_steps`."""
    config, flags = given.config, given.flags
    check_diffuses(config, "a grid is chosen")
    count, fine, num = (flags[name] for name in ("num_steps", "fine", "num"))
    if not 1 <= count < fine:
        raise UserError(f"--num_steps must be 1 to --fine={fine} less one, not {count}")
    if num < 1:
        raise UserError(f"--num must be at least 1 sample, not {num}")
    sampling = config.sampling
    sampling.tolerance, sampling.steps, sampling.sampler = 0.0, str(fine), "ddim"
    if sampling.grid.entry in ("respaced", "explicit"):
        sampling.grid = "trailing"
    chosen, errors = choose(config, given, count, num)
    text = ",".join(f"{t:.6g}" for t in chosen)
    path = make_folder(given.workdir / "grids") / f"{count}.json"
    record = {"steps": text, "errors": errors, "fine": fine, "num": num, "seed": sampling.seed}
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(f"local errors add up to {errors['chosen']:.4g}, evenly spread {errors['even']:.4g}")
    return (
        "--config.sampling.sampler=ddim --config.sampling.grid=explicit "
        f"--config.sampling.steps={text}"
    )


def choose(config: Config, given: Given, count: int, num: int) -> tuple[list[float], dict]:
    """(the values of t, the sums of local errors of these levels and of as many evenly spread)."""
    opened = open_run(config, given.workdir, ONLY)
    generate = make_generate(config, opened.parts, trajectory=True, weak=opened.weak)
    _, path = generate(opened.params, np.arange(num))
    x, x0 = (np.moveaxis(np.asarray(a), 1, 0) for a in (path.x, path.x0))
    grid = Level(*(np.asarray(a) for a in jax.tree.map(np.asarray, opened.parts.grid)))
    cost = local_errors(x[:-1], x0, grid)
    levels = best_levels(cost, count)
    even = np.unique(np.linspace(0, len(grid.t), count + 1).round().astype(int)[:-1])
    total = lambda levels: float(sum(cost[i, j] for i, j in itertools.pairwise([*levels, -1])))
    return [float(grid.t[i]) for i in levels], {"chosen": total(levels), "even": total(even)}
