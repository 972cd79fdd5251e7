"""What commands write into a workdir, beside a run's own files."""

import json
import pathlib
from typing import Any

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import write_text
from diffusion_jax.modalities import pictures
from diffusion_jax.runs.build import Parts, declared
from diffusion_jax.runs.citations import citations
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.draw import captions, classes, make_asked
from diffusion_jax.runs.prompts import Prompts
from diffusion_jax.runs.settings import as_values

PICTURED = 10  # samples whose reverse process is shown
FRAMES = 50  # at most, in a GIF
COLUMNS = 12  # at most, in a strip


def spread(length: int, most: int) -> np.ndarray:
    """At most `most` indices evenly spread over 0 ... length - 1, ends included."""
    return np.linspace(0, length - 1, min(most, length)).round().astype(int)


def decoded(parts: Parts, x0: Any) -> np.ndarray:
    """x0 [N, *shape] as data, such as uint8 images."""
    return np.asarray(parts.codec.decode(parts.codec.params, np.asarray(x0)))


def sample_labels(config: Config, parts: Parts, count: int) -> np.ndarray | None:
    """The labels of samples 0 ... count - 1, None where the network is told none."""
    if "label" not in parts.conditioner.reads:
        return None
    prompts = Prompts(config, parts) if config.sampling.prompts else None
    return make_asked(config, parts, prompts)(np.arange(count))["label"]


def preview(config: Config, parts: Parts, data: np.ndarray) -> np.ndarray | None:
    """One picture, uint8 [H, W, C], of samples; None where there is none of such data."""
    if parts.modality.entry == "image" and (asked := captions(config, parts, len(data))):
        return pictures.labelled(pictures.shown(data, declared(config).range), asked)
    in_turn = config.sampling.label < 0 and set(parts.conditioner.reads) == {"label"}
    by_class = classes(config) if in_turn else 0
    return parts.modality.preview(data, by_class, declared(config).range)


def save_preview(config: Config, parts: Parts, path: pathlib.Path, data: np.ndarray) -> None:
    """The picture of `preview` as a PNG file, where there is one."""
    picture = preview(config, parts, data)
    if picture is not None:
        pictures.save(path, picture)


def save_samples(config: Config, parts: Parts, folder: pathlib.Path, data: np.ndarray) -> None:
    """samples.npz, and a file a sample."""
    labels = sample_labels(config, parts, len(data))
    parts.modality.save(folder, data, labels, declared(config).range)


def write_settings(config: Config, folder: pathlib.Path, **groups: Any) -> None:
    """folder/settings.json: the groups of settings by which its pictures were made, and `papers`,
    those of the methods of the run."""
    values = {name: as_values(group) for name, group in groups.items()}
    values |= {"papers": citations(config)}
    write_text(folder / "settings.json", json.dumps(values, indent=2))


def write_chain(config: Config, folder: pathlib.Path, parts: Parts, generate, params) -> None:
    """The reverse process of the first samples: chain.gif, and chain.png with one sample a row and
    time to the right."""
    count = min(config.sampling.num, PICTURED)
    _, path = generate(params, np.arange(count))
    xs = path.x0 if config.sampling.predicted else path.x
    if parts.modality.entry != "image":
        raise UserError(f"the reverse process is shown of images, not of {parts.modality.entry!r}")
    times, between = spread(xs.shape[1], FRAMES), declared(config).range
    frames = [pictures.shown(decoded(parts, xs[:, i]), between) for i in times]
    if config.sampling.gif:
        shown = [pictures.enlarge(pictures.tile(frame, 1)) for frame in frames]
        pictures.save_gif(folder / "chain.gif", shown)
    if config.sampling.strip:
        shown = np.concatenate([frames[i] for i in spread(len(frames), COLUMNS)])
        pictures.save(folder / "chain.png", pictures.enlarge(pictures.tile(shown, count), 800))
