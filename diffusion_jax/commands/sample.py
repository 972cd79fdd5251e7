"""The command `sample`: draws from a trained run and writes the pictures."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, new_folder, write_text
from diffusion_jax.devices.parallel import equal_batches, place
from diffusion_jax.modalities import pictures
from diffusion_jax.runs.build import Parts, build
from diffusion_jax.runs.config import Config, differences, load
from diffusion_jax.runs.draw import advice, labels, make_generate, make_grid, make_sampler
from diffusion_jax.samplers import draws_noise, num_steps_for
from diffusion_jax.training.checkpoint import Checkpoints

PICTURED = 10  # samples whose reverse process is shown
PILOT = 20  # samples by which the number of steps is chosen
FRAMES = 50  # at most, in a GIF
COLUMNS = 12  # at most, in a strip


def spread(length: int, most: int) -> np.ndarray:
    """At most `most` indices evenly spread over 0 ... length - 1, ends included."""
    return np.linspace(0, length - 1, min(most, length)).round().astype(int)


def rows(config: Config, count: int) -> int:
    """Rows of a grid of samples: one for each class where they come in turn."""
    by_class = config.data.num_classes if config.sampling.label < 0 else 0
    return min(by_class or round(count**0.5), count)


def grid(config: Config, images: np.ndarray) -> np.ndarray:
    """Float images [N, H, W, C] -> one picture, uint8."""
    return pictures.enlarge(pictures.tile(pictures.to_uint8(images), rows(config, len(images))))


def draw(
    generate: Callable, params, num: int, batch_size: int, progress: bool = False
) -> np.ndarray:
    """Samples 0 ... num - 1, float [num, H, W, C]; a last batch that is not full is filled up, so
    that shapes stay."""
    images, size = [], min(batch_size, num)
    with tqdm.tqdm(total=num, unit="image", disable=not progress) as bar:
        for index, count in equal_batches(num, size):
            images.append(generate(params, index)[:count])
            bar.update(len(images[-1]))
    return np.concatenate(images)


def restore_params(config: Config, parts: Parts, workdir: pathlib.Path, ema: bool):
    """(averaged or raw parameters, their step) from the newest checkpoint."""
    checkpoints = Checkpoints(workdir, read_only=True)
    state, _ = checkpoints.restore(jax.eval_shape(parts.init_state, jax.random.key(0)))
    checkpoints.close()
    return place(state.ema_params if ema else state.params), int(state.step)


SAME_NETWORK = (
    "data.shape",
    "data.num_classes",
    "model.",
    "diffusion.schedule",
    "diffusion.num_steps",
    "diffusion.prediction",
)


def weak_params(config: Config):
    """The averaged parameters of the run sampling.weak, None where it is empty; UserError where its
    network is another."""
    if not config.sampling.weak:
        return None
    workdir = pathlib.Path(config.sampling.weak)
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"config.sampling.weak must be the workdir of a run, but {workdir} holds none"
        )
    weak = load(workdir / "config.json")
    changed = [change for change in differences(weak, config) if change.startswith(SAME_NETWORK)]
    changed = [change for change in changed if not change.startswith("model.dropout:")]
    layers = {  # that are there or not
        "training.label_dropout": (weak.training.label_dropout, config.training.label_dropout),
        "data.augment": (weak.data.augment, config.data.augment),
    }
    changed += [
        f"{path}: {was} -> {now}" for path, (was, now) in layers.items() if bool(was) != bool(now)
    ]
    if changed:
        raise UserError(
            f"config.sampling.weak={workdir} is a run of another network ({'; '.join(changed)})"
        )
    return restore_params(weak, build(weak), workdir, ema=True)[0]


def write_settings(folder: pathlib.Path, **groups) -> None:
    """folder/settings.json: the groups of settings by which its pictures were made."""
    write_text(
        folder / "settings.json",
        json.dumps({name: dataclasses.asdict(group) for name, group in groups.items()}, indent=2),
    )


class TrainedRun(NamedTuple):
    """What samples are drawn from."""

    parts: Parts
    params: Any
    step: int
    weak: Any  # the parameters of sampling.weak


def open_run(config: Config, workdir: pathlib.Path, only: str) -> TrainedRun:
    """The run in a workdir, ready to draw as config.sampling says; UserError, which says what the
    command takes `only`."""
    changed = differences(load(workdir / "config.json"), config)
    if changed:
        raise UserError(f"{only}, not {'; '.join(changed)}")
    parts = build(config)
    params, step = restore_params(config, parts, workdir, config.sampling.ema)
    weak = weak_params(config)
    if config.sampling.tolerance:
        parts = settled(config, parts, params, weak)
    if note := advice(config, parts.grid):
        print(note)
    return TrainedRun(parts, params, step, weak)


def manner(config: Config, parts: Parts, step: int) -> str:
    """How a run draws, as the name of a folder."""
    sampling = config.sampling
    spacing = sampling.steps if len(sampling.steps) <= 40 else f"{len(parts.grid.t)}steps"
    kind = f"{sampling.sampler}-{spacing}" + ("" if sampling.ema else "-raw")
    kind += f"-guidance{sampling.guidance:g}" if sampling.guidance else ""
    return f"step{step}-{kind}-seed{sampling.seed}"


def sample(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Draws sampling.num images and writes grid.png, one PNG each and samples.npz, on request
    chain.gif and chain.png.

    Returns the folder, workdir/samples/<how they were drawn>. samples.npz holds `images` uint8 [N,
    H, W, C] and, where the run has classes, `labels` [N]."""
    sampling = config.sampling
    parts, params, step, weak = open_run(
        config, workdir, "sampling takes only config.sampling.* settings"
    )
    make_folder(workdir / "samples")
    images = draw(
        make_generate(config, parts, weak=weak),
        params,
        sampling.num,
        sampling.batch_size,
        progress=True,
    )

    folder = new_folder(workdir / "samples", manner(config, parts, step))
    pictures.save(folder / "grid.png", grid(config, images))
    pixels = pictures.to_uint8(images)
    for i, image in enumerate(pixels):
        pictures.save(folder / f"{i:05d}.png", image)
    if config.data.num_classes:
        np.savez(
            folder / "samples.npz", images=pixels, labels=labels(config, np.arange(sampling.num))
        )
    else:
        np.savez(folder / "samples.npz", images=pixels)
    write_settings(folder, sampling=sampling)
    if sampling.gif or sampling.strip:
        write_chain(
            config, folder, make_generate(config, parts, trajectory=True, weak=weak), params
        )
    return folder


def settled(config: Config, parts: Parts, params, weak) -> Parts:
    """The run with the number of steps, set in config.sampling.steps and said aloud, that
    sampling.tolerance asks for."""
    sampling = config.sampling
    if sampling.grid == "explicit":
        raise UserError(
            "config.sampling.tolerance chooses a number of steps, which an explicit grid does not take"
        )
    if draws_noise(parts.sampler):
        raise UserError(
            f"config.sampling.tolerance compares samples of the same noise, but {sampling.sampler} draws anew in every step; "
            "take ddim, dpmpp_2m, unipc or heun_flow"
        )

    def of(num_steps: int) -> Parts:
        sampling.steps = str(num_steps)
        levels = make_grid(config, parts.schedule)
        return parts._replace(grid=levels, sampler=make_sampler(config, parts.schedule, levels))

    draw = lambda num_steps: make_generate(config, of(num_steps), weak=weak)(
        params, np.arange(min(sampling.num, PILOT))
    )
    try:
        num_steps, error = num_steps_for(draw, sampling.tolerance, most=config.diffusion.num_steps)
    except ValueError as error:
        raise UserError(f"config.sampling.tolerance cannot be kept: {error}") from None
    print(f"{num_steps} steps: {sampling.sampler} with {2 * num_steps} differs by {error:.2g}")
    return of(num_steps)


def write_chain(config: Config, folder: pathlib.Path, generate, params) -> None:
    """The reverse process of the first samples: chain.gif, and chain.png with one sample a row and
    time to the right."""
    count = min(config.sampling.num, PICTURED)
    _, path = generate(params, np.arange(count))
    xs = path.x0 if config.sampling.predicted else path.x
    frames = [
        pictures.to_uint8(xs[:, i])
        for i in np.linspace(0, xs.shape[1] - 1, min(FRAMES, xs.shape[1])).round().astype(int)
    ]
    if config.sampling.gif:
        pictures.save_gif(
            folder / "chain.gif", [pictures.enlarge(pictures.tile(frame, 1)) for frame in frames]
        )
    if config.sampling.strip:
        shown = [frames[i] for i in spread(len(frames), COLUMNS)]
        pictures.save(
            folder / "chain.png", pictures.enlarge(pictures.tile(np.concatenate(shown), count), 800)
        )
