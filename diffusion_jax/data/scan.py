"""Every image file decoded once: its size or its fault is remembered, on request its pixels, too.

What is remembered lies in the cache's data/<hash of the files' names, sizes and times>."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tqdm
from PIL import UnidentifiedImageError

from diffusion_jax.core.caches import cache_folder
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import images

VERSION = 2  # of what is remembered; another decoder or another way to resize is another version
CHUNK = 1024  # files under way at a time


class Scan(NamedTuple):
    """Of N files."""

    sizes: np.ndarray  # int [N, 2], height and width, upright; 0 where the file cannot be read
    faults: dict[int, str]  # number of a file that cannot be read -> why
    pixels: np.ndarray | None  # uint8 [N, H, W, C], memory-mapped


def fingerprint(root: pathlib.Path, names: Sequence[str], stats: Sequence[os.stat_result]) -> str:
    """A hash that changes where any file does: of the folder and of the names, sizes and times of
    its files."""
    found = hashlib.sha256(f"{VERSION}\0".encode() + os.fsencode(root.resolve()))
    for name, stat in zip(names, stats, strict=True):
        found.update(
            os.fsencode(name)
            + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0".encode()
        )
    return found.hexdigest()[:32]


def scan(
    root: pathlib.Path, names: Sequence[str], stats, shape: tuple[int, ...], resize: str, keep: bool
) -> Scan:
    """What is known of the files `names` in root, from memory or by decoding all of them. keep:
    their pixels as well.

    Raises UserError where the pixels cannot be kept, and where `resize` is none and a size does not
    match."""
    folder = cache_folder("data") / fingerprint(root, names, stats)
    index, store = folder / "index.json", folder / f"{'x'.join(map(str, shape))}-{resize}.npy"
    known, pixels = (
        read_index(index, len(names)),
        read_pixels(store, (len(names), *shape)) if keep else None,
    )
    if known is None or (keep and pixels is None):
        try:
            with contextlib.ExitStack() as stack:
                if keep:
                    folder.mkdir(parents=True, exist_ok=True)
                out = stack.enter_context(whole_file(store)) if keep else None
                known = decode_all(root, names, shape, resize, out)
                remember(index, known)
                check_sizes(names, known.sizes, shape, resize)
            pixels = read_pixels(store, (len(names), *shape)) if keep else None
        except OSError as error:
            cause = error.strerror or error
            raise UserError(
                f"config.data.source.cache=true, but {folder} cannot be written: {cause}"
            ) from None
    check_sizes(names, known.sizes, shape, resize)
    return known._replace(pixels=pixels)


def read_index(path: pathlib.Path, count: int) -> Scan | None:
    try:
        stored = json.loads(path.read_text())
        sizes = np.array(stored["sizes"], np.int64).reshape(count, 2)
        return Scan(sizes, {int(i): fault for i, fault in stored["faults"].items()}, None)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # none there, or damaged: made anew
        return None


def read_pixels(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        pixels = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator:
    """A file opened for writing bytes, which is there when all of it is, or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remember(index: pathlib.Path, known: Scan) -> None:
    """Writes what was found; where there is no room for it, the next start finds it again."""
    with contextlib.suppress(OSError):
        index.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(index) as file:
            file.write(json.dumps({"sizes": known.sizes.tolist(), "faults": known.faults}).encode())


def decode_all(
    root: pathlib.Path, names: Sequence[str], shape: tuple[int, ...], resize: str, out=None
) -> Scan:
    """Decodes every file, and writes to `out` the .npy of their pixels, in which those that cannot
    be read are 0."""
    if out:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(names), *shape)}
        np.lib.format.write_array_header_1_0(out, header)

    def look(name: str):
        try:
            image = images.decode(root / name, shape[2])
            fits = resize != "none" or image.size == (shape[1], shape[0])
            pixels = images.to_array(image, shape, resize) if out and fits else None
            return (image.height, image.width), pixels, ""
        except Exception as error:  # Pillow raises a different class for each of a hundred causes
            return (0, 0), None, reason(error)

    sizes, faults = [], {}
    bar = tqdm.tqdm(
        total=len(names),
        unit="file",
        desc="reading every image once",
        delay=2,
        leave=False,
        disable=None,
    )
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(names), CHUNK):
            for size, pixels, fault in threads.map(look, names[start : start + CHUNK]):
                if fault:
                    faults[len(sizes)] = fault
                if out:
                    out.write(bytes(math.prod(shape)) if pixels is None else pixels.tobytes())
                sizes.append(size)
                bar.update()
    return Scan(np.array(sizes, np.int64).reshape(-1, 2), faults, None)


def reason(error: Exception) -> str:
    """Why a file cannot be read, in few words and without its path."""
    if isinstance(error, UnidentifiedImageError):
        return "no image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def check_sizes(
    names: Sequence[str], sizes: np.ndarray, shape: tuple[int, ...], resize: str
) -> None:
    """Raises UserError where images stay as they are and one has another size than
    config.data.shape says."""
    wrong = np.flatnonzero(((sizes != shape[:2]) & (sizes > 0)).any(1))
    if resize == "none" and len(wrong):
        (h, w), name = sizes[wrong[0]], shown(names[int(wrong[0])])
        raise UserError(
            f"{len(wrong)} of {len(names)} images are not {shape[0]} x {shape[1]}, as "
            f"config.data.shape says, such as {name} ({h} x {w}); "
            "config.data.source.resize=center_crop makes them so"
        )


def shown(name: str) -> str:
    """A file's name as text that can be printed, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "replace")
