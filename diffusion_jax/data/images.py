"""Image files, by Pillow: decoded to gray or RGB, and brought to a size."""

import math
import pathlib

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MODES = {1: "L", 3: "RGB"}
LONG = 8  # times the pixels asked for: what is resized and then cut is no larger


def decode(path: pathlib.Path, channels: int) -> Image.Image:
    """The first frame of a file, upright as its EXIF orientation says, in mode L (one channel) or
    RGB (three).

    Transparent pixels lie on white. 16 bits become 8 by scaling. Palettes, CMYK and the like become
    RGB, and colours gray by their luma (ITU-R 601). Raises one of Pillow's many exceptions where
    the file is none of FORMATS or damaged, and ValueError where its values are floats or have more
    than 16 bits, since these have no range of their own."""
    with Image.open(path, formats=FORMATS) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
    if image.mode == "F":
        raise ValueError("its values are floats, which config.data.source=arrays takes")
    if image.mode.startswith("I"):  # convert("L") would clip it
        image = eight_bits(image)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(MODES[channels])


def eight_bits(image: Image.Image) -> Image.Image:
    """A gray image of 16 bits in 8; white where it has its transparent value."""
    deep, transparent = np.asarray(image), image.info.get("transparency")
    if deep.min(initial=0) < 0 or deep.max(initial=0) > 65_535:
        raise ValueError("its values have more than 16 bits, which config.data.source=arrays takes")
    pixels = np.round(deep / 257.0).astype(np.uint8)
    if isinstance(transparent, int):
        pixels[deep == transparent] = 255
    return Image.fromarray(pixels)


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
    box = (left, top, left + width, top + height)
    if w * h > LONG * width * height:
        return resized_part(image, (w, h), box)
    return image.resize((w, h), Image.Resampling.BICUBIC).crop(box)


def resized_part(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]
) -> Image.Image:
    """`image.resize(size, BICUBIC).crop(box)` without making the rest of it: within one level, but
    where an overshoot of the interpolation is cut off between the two axes, in another order.

    The part of the image that the box comes from is cut out first, with a margin for the
    interpolation: 2 pixels of the coarser grid to each side."""
    ratios = image.width / size[0], image.height / size[1]  # pixels of the image a resized one
    ends = [side * ratio for side, ratio in zip(box, ratios * 2, strict=True)]
    margins = [math.ceil(2 * max(1.0, ratio)) + 1 for ratio in ratios]
    cut = (
        max(0, math.floor(ends[0]) - margins[0]),
        max(0, math.floor(ends[1]) - margins[1]),
        min(image.width, math.ceil(ends[2]) + margins[0]),
        min(image.height, math.ceil(ends[3]) + margins[1]),
    )
    within = (ends[0] - cut[0], ends[1] - cut[1], ends[2] - cut[0], ends[3] - cut[1])
    asked = (box[2] - box[0], box[3] - box[1])
    return image.crop(cut).resize(asked, Image.Resampling.BICUBIC, box=within)


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
