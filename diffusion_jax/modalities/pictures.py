"""Pictures of images: grids, single PNGs, GIFs and strips (Pillow)."""

import io
import os
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DARK = 32  # of 0 ... 255, between the images of a grid


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Floats in [-1, 1], clipped, -> uint8 0 ... 255."""
    return np.clip(np.round((np.asarray(images) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def shown(data: np.ndarray, range: tuple[float, float] | None = None) -> np.ndarray:
    """uint8 of images: their bytes, or floats from black at the least to white at the largest value
    of a range, clipped. Without a range it is that of the data."""
    data = np.asarray(data)
    if data.dtype == np.uint8:
        return data
    low, high = range or (float(data.min(initial=np.inf)), float(data.max(initial=-np.inf)))
    return to_uint8((data - low) * (2.0 / ((high - low) or 1.0)) - 1.0)


def tile(images: np.ndarray, rows: int, pad: int = 1) -> np.ndarray:
    """uint8 [N, H, W, C] -> one picture uint8 [., ., 1 or 3] of `rows` rows; image i is in row i %
    rows, so that with labels in turn every class has its row. Missing ones are left dark; colours
    beyond the third are dropped."""
    n, h, w, c = images.shape
    images = images[..., :3] if c >= 3 else images[..., :1]
    columns = -(-n // rows)
    canvas = np.full(
        (rows * (h + pad) + pad, columns * (w + pad) + pad, images.shape[-1]), DARK, np.uint8
    )
    for i, image in enumerate(images):
        y, x = pad + (i % rows) * (h + pad), pad + (i // rows) * (w + pad)
        canvas[y : y + h, x : x + w] = image
    return canvas


def tile_by_rows(images: np.ndarray, columns: int, pad: int = 1) -> np.ndarray:
    """As `tile`, in reading order: image i is in row i // columns."""
    rows = -(-len(images) // columns)
    dark = np.full((rows * columns - len(images), *images.shape[1:]), DARK, np.uint8)
    order = np.arange(rows * columns).reshape(rows, columns).T.reshape(-1)
    return tile(np.concatenate([images, dark])[order], rows, pad)


def enlarge(picture: np.ndarray, least: int = 400) -> np.ndarray:
    """Repeats pixels a whole number of times, so that a picture of tiny images is at least about
    `least` pixels wide."""
    times = max(1, round(least / max(picture.shape[:2])))
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def labelled(images: np.ndarray, captions: list[str], least: int = 64) -> np.ndarray:
    """uint8 [N, H, W, C] -> one picture with a row of images for each caption, which stands beside
    it; rows lie in as many columns as make the picture near square.

    captions: one an image. least: height of an image in the picture, about, in pixels."""
    times = max(1, round(least / images.shape[1]))
    images = images.repeat(times, axis=1).repeat(times, axis=2)
    images = images[..., :3] if images.shape[-1] >= 3 else images[..., :1].repeat(3, axis=-1)
    of: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        of.setdefault(caption, []).append(i)
    columns = max(map(len, of.values()))
    font = ImageFont.load_default(size=14)
    width = 12 + int(max(font.getlength(caption) for caption in of))
    rows = []
    for caption, chosen in of.items():
        missing = np.full((columns - len(chosen), *images.shape[1:]), DARK, np.uint8)
        strip = tile(np.concatenate([images[chosen], missing]), 1)
        text = Image.new("RGB", (width, strip.shape[0]), (DARK, DARK, DARK))
        draw = ImageDraw.Draw(text)
        draw.text((6, strip.shape[0] // 2), caption, "white", font, anchor="lm")
        rows.append(np.concatenate([strip, np.asarray(text)], axis=1))
    height, width = rows[0].shape[:2]
    across = max(1, round((len(rows) * height / width) ** 0.5))
    return tile_by_rows(np.stack(rows), across, pad=0)


def save(path: pathlib.Path, picture: np.ndarray) -> None:
    """uint8 [H, W, C] with C of 1 or at least 3, as PNG, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    _image(picture).save(partial, format="PNG")
    os.replace(partial, path)


def png(picture: np.ndarray) -> bytes:
    """A PNG file of uint8 [H, W, C], with nothing but its pixels."""
    file = io.BytesIO()
    _image(picture).save(file, format="PNG")
    return file.getvalue()


def save_gif(path: pathlib.Path, frames: list[np.ndarray], milliseconds: int = 80) -> None:
    """uint8 [H, W, C] frames; the last one stays for a second and a half."""
    images = [_image(frame).convert("P") for frame in frames]
    durations = [milliseconds] * (len(images) - 1) + [1500]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0)


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture[..., 0] if picture.shape[-1] in (1, 2) else picture[..., :3])
