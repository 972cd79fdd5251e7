"""Draws from a trained run and writes the pictures.

python main.py sample --workdir DIR
python main.py sample --workdir DIR --prompt "a red heart" --prompt "camel on blue" --negative face
python main.py sample --workdir DIR,DIR [--stage 1:sampling.steps=50]
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, new_folder
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import cascade, draw, folders, prompts
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import manner, open_run

FLAGS = {
    "prompt": Flag((), "a text that samples are asked for; given again for another"),
    "prompts": Flag("", "a file of prompts, one a line"),
    "negative": Flag("", "a text that guidance leads away from"),
    "stage": Flag((), "a setting of one run of a chain, as 1:sampling.steps=50; again for others"),
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
        return f"samples: {sample_chain(given.chain, configs)}"
    return f"samples: {sample(given.config, given.workdir)}"


def sample(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Draws sampling.num examples and writes grid.png, one file each and samples.npz, on request
    chain.gif and chain.png. Each row of the grid is labelled with its prompt, where there are any.

    Returns the folder, workdir/samples/<how they were drawn>. samples.npz holds `images`, uint8 or,
    of float data, float32 in their units, [N, H, W, C] and, where the run has classes, `labels`
    [N]."""
    sampling = config.sampling
    parts, params, step, weak = open_run(config, workdir, ONLY)
    for note in draw.prompt_notes(config, parts):
        print(f"note: {note}")
    make_folder(workdir / "samples")
    generate = draw.make_generate(config, parts, weak=weak, decoded=True)
    data = draw.draw(generate, params, sampling.num, sampling.batch_size, progress=True)

    folder = new_folder(workdir / "samples", manner(config, parts, step))
    picture = folders.preview(config, parts, data)
    if picture is not None:
        pictures.save(folder / "grid.png", picture)
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
