"""Draws from a trained run and writes the pictures.

python main.py sample --workdir DIR
python main.py sample --workdir DIR --prompt "a red heart" --prompt "camel on blue" --negative face
"""

import pathlib

from diffusion_jax.core.files import make_folder, new_folder
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import draw, folders, prompts
from diffusion_jax.runs.command_line import Flag, Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import manner, open_run

FLAGS = {
    "prompt": Flag((), "a text that samples are asked for; given again for another"),
    "prompts": Flag("", "a file of prompts, one a line"),
    "negative": Flag("", "a text that guidance leads away from"),
}


def run(given: Given) -> str:
    """What `main.py sample` does with its flags."""
    flags, sampling = given.flags, given.config.sampling
    asked = (*(prompts.read(flags["prompts"]) if flags["prompts"] else ()), *flags["prompt"])
    sampling.prompts = asked or sampling.prompts
    sampling.negative = flags["negative"] or sampling.negative
    return f"samples: {sample(given.config, given.workdir)}"


def sample(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Draws sampling.num examples and writes grid.png, one file each and samples.npz, on request
    chain.gif and chain.png. Each row of the grid is labelled with its prompt, where there are any.

    Returns the folder, workdir/samples/<how they were drawn>. samples.npz holds `images`, uint8 or,
    of float data, float32 in their units, [N, H, W, C] and, where the run has classes, `labels`
    [N]."""
    sampling = config.sampling
    only = "sampling takes only config.sampling.* settings"
    parts, params, step, weak = open_run(config, workdir, only)
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
