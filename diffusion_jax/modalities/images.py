"""Images, [H, W, C]: 8 bits a channel, or floats with a range."""

import math
import pathlib

import numpy as np

from diffusion_jax.core.components import component
from diffusion_jax.modalities import pictures
from diffusion_jax.modalities.modality import Modality, write_samples

HIGH = 5  # times as high as wide: the most of a picture with a row a class


@component
def images() -> Modality:
    """Images of height, width and channels, kept as PNG files and shown as a grid."""
    return Modality("image", np.dtype(np.uint8), check, save, preview, "inception")


def check(shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"images have a height, a width and channels, not {tuple(shape)}")


def save(
    folder: pathlib.Path,
    data: np.ndarray,
    labels: np.ndarray | None = None,
    range: tuple[float, float] | None = None,
) -> None:
    """samples.npz, whose `images` [N, H, W, C] are uint8 or float32 in the data's units, and
    00000.png, 00001.png ..., where a range goes from black to white."""
    write_samples(folder, "images", data, labels)
    for i, image in enumerate(pictures.shown(data, range)):
        pictures.save(folder / f"{i:05d}.png", image)


def preview(
    data: np.ndarray, classes: int = 0, range: tuple[float, float] | None = None
) -> np.ndarray:
    """A grid of images, enlarged where they are tiny: with a row a class, near-square where there
    are so many that it would be a strip; then the classes follow in reading order."""
    seen = pictures.shown(data, range)
    count, height, width = seen.shape[:3]
    rows = min(classes or round(count**0.5), count)
    each = -(-count // rows)  # images a row
    if not classes or rows * height <= HIGH * each * width:
        return pictures.enlarge(pictures.tile(seen, rows))
    columns = each * max(1, round(math.sqrt(rows * height / (each * width))))
    return pictures.enlarge(pictures.tile_by_rows(by_class(seen, rows), columns))


def by_class(images: np.ndarray, classes: int) -> np.ndarray:
    """Images whose classes come in turn, class by class; dark where one class has fewer."""
    each = -(-len(images) // classes)
    missing = classes * each - len(images)
    dark = np.full((missing, *images.shape[1:]), pictures.DARK, images.dtype)
    turns = np.concatenate([images, dark]).reshape(each, classes, *images.shape[1:])
    return turns.swapaxes(0, 1).reshape(-1, *images.shape[1:])
