"""Draws from a trained run and writes the pictures.

python main.py sample --workdir DIR
python main.py sample --workdir DIR --deadline 2.0 --early 4
python main.py sample --workdir DIR --prompt "a red heart" --prompt "camel on blue" --negative face
python main.py sample --workdir DIR,DIR [--stage 1:sampling.steps=50]
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, new_folder
from diffusion_jax.core.types import PyTree
from diffusion_jax.runs import cascade, draw, folders, prompts
from diffusion_jax.runs.build import Parts, make_grid
from diffusion_jax.runs.checks import check_diffuses
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.deadline import check_deadline, draw_all, make_draw_until
from diffusion_jax.runs.open import manner, open_run

FLAGS = {
    "prompt": Flag((), "a text that samples are asked for; given again for another"),
    "prompts": Flag("", "a file of prompts, one a line"),
    "negative": Flag("", "a text that guidance leads away from"),
    "stage": Flag((), "a setting of one run of a chain, as 1:sampling.steps=50; again for others"),
    "deadline": Flag(0.0, "the seconds in which all samples are drawn, once compiled"),
    "early": Flag(0, "pictures of the first results on the way, early_<steps>.png"),
}
NEEDS = Needs(chain=True)
ONLY = "sampling takes only config.sampling.* settings"


def run(given: Given) -> str:
    """What `main.py sample` does with its flags."""
    flags = given.flags
    if flags["stage"] and not given.chain:
        raise UserError("--stage is of a chain of runs, as in --workdir runs/base,runs/sr")
    configs = cascade.given_configs(given) if given.chain else [given.config]
    sampling = configs[0].sampling
    asked = (*(prompts.read(flags["prompts"]) if flags["prompts"] else ()), *flags["prompt"])
    sampling.prompts = asked or sampling.prompts
    sampling.negative = flags["negative"] or sampling.negative
    if given.chain:
        if flags["deadline"] or flags["early"]:
            raise UserError("--deadline and --early are of one run, not of a chain")
        return f"samples: {sample_chain(given.chain, configs)}"
    drawn = sample(given.config, given.workdir, flags["deadline"], flags["early"])
    return f"samples: {drawn}"


def sample(
    config: Config, workdir: pathlib.Path, deadline: float = 0.0, early: int = 0
) -> pathlib.Path:
    """Draws sampling.num examples and writes grid.png, one file each and samples.npz, on request
    chain.gif and chain.png. Each row of the grid is labelled with its prompt, where there are any.

    deadline: seconds for all of them, 0 for none; the number of steps that they allowed is then
    that of settings.json. early: how many pictures early_<steps>.png are written on the way, as
    soon as they can be, of the x0 predicted of the first batch.

    Returns the folder, workdir/samples/<how they were drawn>. samples.npz holds `images`, uint8 or,
    of float data, float32 in their units, [N, H, W, C] and, where the run has classes, `labels`
    [N]."""
    sampling = config.sampling
    if early < 0:
        raise UserError(f"--early must be at least 0 pictures, not {early}")
    if deadline or early:
        check_diffuses(config, "--deadline and --early are")
        check_deadline(config, early=not deadline)
    parts, params, step, weak = open_run(config, workdir, ONLY)
    for note in draw.prompt_notes(config, parts):
        print(f"note: {note}")
    make_folder(workdir / "samples")
    if deadline or early:
        folder, data, parts = draw_early(
            config, workdir, parts, params, step, weak, deadline, early
        )
    else:
        generate = draw.make_generate(config, parts, weak=weak, decoded=True)
        data = draw.draw(generate, params, sampling.num, sampling.batch_size, progress=True)
        folder = new_folder(workdir / "samples", manner(config, parts, step))
    folders.save_preview(config, parts, folder / "grid.png", data)
    folders.save_samples(config, parts, folder, data)
    folders.write_settings(config, folder, sampling=sampling)
    if sampling.gif or sampling.strip:
        generate = draw.make_generate(config, parts, trajectory=True, weak=weak)
        folders.write_chain(config, folder, parts, generate, params)
    return folder


def sample_chain(workdirs: Sequence[pathlib.Path], configs: Sequence[Config]) -> pathlib.Path:
    """Draws sampling.num examples by a chain of runs, whose configs are those of
    `cascade.configs_of`.

    Returns the folder, samples/chain<runs>-<how> in the last run's workdir, which has what `sample`
    writes, of the last run; stage1, stage2 ... in it have the same of the others. Each appears as
    soon as it is drawn. settings.json names every stage's run, step and settings."""
    for config in configs:
        if config.sampling.gif or config.sampling.strip:
            raise UserError("config.sampling.gif and .strip are of one run, not of a chain")
    stages = cascade.open_chain(workdirs, configs, ONLY)
    make_folder(workdirs[-1] / "samples")
    folder = new_folder(workdirs[-1] / "samples", cascade.manner_of(stages))
    last, groups = stages[-1].config, cascade.records(stages)
    folders.write_settings(last, folder, sampling=last.sampling, stages=groups)

    def write(number: int, images: np.ndarray) -> None:
        own = folder if number == len(stages) - 1 else make_folder(folder / f"stage{number + 1}")
        cascade.write_stage(stages, own, images)
        if own != folder:
            print(f"stage {number + 1}: {own}", flush=True)

    cascade.draw_chain(stages, write, bar=True)
    return folder


def draw_early(
    config: Config,
    workdir: pathlib.Path,
    parts: Parts,
    params: PyTree,
    step: int,
    weak: PyTree,
    deadline: float,
    early: int,
) -> tuple[pathlib.Path, np.ndarray, Parts]:
    """(the folder, the samples, the parts with the grid that they were drawn on)."""
    if early and parts.modality.entry != "image":
        raise UserError(f"--early shows images, not {parts.modality.entry!r}")
    draw_until = make_draw_until(config, parts, weak)
    spacing = f"deadline{deadline:g}" if deadline else ""
    folder = new_folder(workdir / "samples", manner(config, parts, step, spacing))

    def on_step(taken: int, data: np.ndarray) -> None:
        folders.save_preview(config, parts, folder / f"early_{taken}.png", data)

    sampling = config.sampling
    drawn = draw_all(
        draw_until, params, sampling.num, sampling.batch_size, deadline or None, early, on_step
    )
    if deadline:
        sampling.steps = str(drawn.steps)
        taken = f"{drawn.fewest} to " if drawn.fewest < drawn.steps else ""
        taken += f"{drawn.steps} steps in {drawn.seconds:.2f} s"
        print(f"{taken}, after {drawn.compiling:.1f} s of compiling")
        parts = parts._replace(grid=make_grid(config, parts.schedule))
    return folder, drawn.data, parts
