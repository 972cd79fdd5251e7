"""Image files, by Pillow: decoded to gray or RGB, and brought to a size."""

import pathlib

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
MODES = {1: "L", 3: "RGB"}


def decode(path: pathlib.Path, channels: int) -> Image.Image:
    """The first frame of a file, upright as its EXIF orientation says, in mode L (one channel) or
    RGB (three).

    Transparent pixels lie on white. 16 bits become 8 by scaling. Palettes, CMYK and the like become
    RGB, and colours gray by their luma (ITU-R 601). Raises one of Pillow's many exceptions where
    the file is none of FORMATS or damaged."""
    with Image.open(path, formats=FORMATS) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):  # convert("L") would clip it
        image = Image.fromarray(np.round(np.asarray(image) / 257.0).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(MODES[channels])


def halved(image: Image.Image, height: int, width: int) -> Image.Image:
    """The means of 2 x 2 pixels, again and again while both sides are at least twice those asked
    for."""
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Halved, brought by cubic interpolation to the least size that covers height x width, and its
    middle cut out (ADM)."""
    image = halved(image, height, width)
    scale = max(height / image.height, width / image.width)
    w, h = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (w - width) // 2, (h - height) // 2
    return image.resize((w, h), Image.Resampling.BICUBIC).crop(
        (left, top, left + width, top + height)
    )


def stretch(image: Image.Image, height: int, width: int) -> Image.Image:
    """Halved and brought by cubic interpolation to height x width, whatever that does to its
    proportions."""
    return halved(image, height, width).resize((width, height), Image.Resampling.BICUBIC)


def none(image: Image.Image, height: int, width: int) -> Image.Image:
    """As it is; sizes must match."""
    if image.size != (width, height):
        raise ValueError(f"it is {image.height} x {image.width}, not {height} x {width}")
    return image


RESIZES = {"center_crop": center_crop, "stretch": stretch, "none": none}


def to_array(image: Image.Image, shape: tuple[int, ...], resize: str) -> np.ndarray:
    """uint8 [H, W, C] of a decoded image."""
    return np.asarray(RESIZES[resize](image, *shape[:2])).reshape(shape)
