"""Features of texts, each computed once and kept on the disk.

They lie in the cache, in a folder for each encoder, length and precision, as blocks: a folder with
`texts.npy`, what is known of each text, and `features.npy`, which is mapped and never read whole.
A block is complete or not there; several processes may write theirs at the same time.
"""

import functools
import hashlib
import itertools
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from diffusion_jax.core.caches import cache_folder
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, reason
from diffusion_jax.models.text.load import TextEncoder

DTYPE = np.dtype(np.float16)  # of what is kept: half the disk, an error of 2^-11
KNOWN = np.dtype([("digest", "u1", (32,)), ("tokens", "<i4"), ("cut", "?")])
BLOCK = 2**28  # bytes of features
BATCH = 32  # texts
VERSION = 1  # of what the networks compute; what was kept under another is not found any more


class Table(NamedTuple):
    """The features of N texts, [L, D] each, in blocks that are mapped.

    block and row [N]: where a text's features lie. tokens [N]: how many it has. cut [N]: whether it
    was longer. length: L."""

    blocks: tuple[np.ndarray, ...]
    block: np.ndarray
    row: np.ndarray
    tokens: np.ndarray
    cut: np.ndarray
    length: int

    def features(self, i: int) -> np.ndarray:
        """[L, D], 0 where there is no token."""
        return np.asarray(self.blocks[self.block[i]][self.row[i]])

    def mask(self, i: int) -> np.ndarray:
        """float32 [L], ones, then zeros."""
        return (np.arange(self.length) < self.tokens[i]).astype(np.float32)

    def notes(self) -> list[str]:
        """What a user should know: how many texts were cut."""
        count = int(self.cut.sum())
        what = f"{count:,} of {len(self.cut):,} texts are longer than {self.length} tokens"
        return [f"{what}, which is what the text encoder takes here, and are cut"] if count else []


def embed(
    encoder: TextEncoder, texts: Sequence[str], batch_size: int = BATCH
) -> tuple[np.ndarray, np.ndarray]:
    """(features float16 [N, L, D], mask float32 [N, L]) of N texts; of those that the cache lacks
    each is computed once. A warning says how many were too long and are cut."""
    found = table(encoder, texts, batch_size)
    for note in found.notes():
        warnings.warn(note, stacklevel=2)
    features = np.zeros((len(found.row), encoder.length, encoder.width), DTYPE)
    mask = np.zeros(features.shape[:2], np.float32)
    for i in range(len(features)):
        features[i], mask[i] = found.features(i), found.mask(i)
    return features, mask


def table(encoder: TextEncoder, texts: Sequence[str], batch_size: int = BATCH) -> Table:
    """The features of N texts, mapped; of those that the cache lacks each is computed once, in
    batches of batch_size.

    Raises UserError where the cache cannot be written."""
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    wanted = dict(zip(keys, texts, strict=True))
    number = {key: i for i, key in enumerate(wanted)}
    blocks: list[np.ndarray] = []
    block = np.full(len(number), -1)
    row, known = np.zeros_like(block), np.zeros(len(number), KNOWN)

    def look_through(path: pathlib.Path) -> None:
        listed, features = read_block(path)
        digests = map(bytes, listed["digest"])
        pairs = [(number[key], i) for i, key in enumerate(digests) if key in number]
        if pairs:
            own, theirs = np.array(pairs).T
            block[own], row[own], known[own] = len(blocks), theirs, listed[theirs]
            blocks.append(features)

    folder = folder_of(encoder)
    for path in sorted(folder.glob("[!.]*")):
        look_through(path)
    missing = {key: text for key, text in wanted.items() if block[number[key]] < 0}
    for path in compute(encoder, missing, folder, batch_size):
        look_through(path)
    of_text = np.array([number[key] for key in keys], np.int64)
    known = known[of_text]
    return Table(
        tuple(blocks), block[of_text], row[of_text], known["tokens"], known["cut"], encoder.length
    )


def folder_of(encoder: TextEncoder) -> pathlib.Path:
    """Where an encoder's features are kept: by a hash of files, length, precision and version."""
    said = f"{encoder.fingerprint} {encoder.length} {DTYPE.str} {VERSION}"
    return cache_folder("text", hashlib.sha256(said.encode()).hexdigest()[:32])


def read_block(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """(KNOWN [M], mapped features [M, L, D]) of a block, both empty where it is damaged."""
    try:
        listed = np.load(path / "texts.npy")
        features = np.load(path / "features.npy", mmap_mode="r")
        if listed.dtype == KNOWN and len(listed) == len(features):
            return listed, features
    except (OSError, ValueError, EOFError):
        pass
    return np.zeros(0, KNOWN), np.zeros(0)


def compute(
    encoder: TextEncoder, texts: Mapping[bytes, str], folder: pathlib.Path, batch_size: int
) -> Iterator[pathlib.Path]:
    """Writes the features of texts, by their digest, and yields each new block's path."""
    if not texts:
        return
    params = jax.tree.map(jnp.asarray, encoder.params)
    forward = functools.partial(jax.jit(encoder.apply), params)
    size = encoder.length * encoder.width * DTYPE.itemsize
    rows = max(1, BLOCK // size // batch_size) * batch_size
    with tqdm.tqdm(total=len(texts), unit="text", desc="text features", disable=None) as bar:
        for some in batched(texts, rows):
            known = np.zeros(len(some), KNOWN)
            known["digest"] = np.frombuffer(b"".join(some), np.uint8).reshape(-1, 32)
            features = np.zeros((len(some), encoder.length, encoder.width), DTYPE)
            for first in range(0, len(some), batch_size):
                there = slice(first, first + batch_size)
                batch = [texts[key] for key in some[there]]
                ids, mask, known["cut"][there] = encoder.tokenize(batch)
                known["tokens"][there] = mask.sum(axis=1)
                features[there] = of_batch(forward, ids, mask, batch_size)
                bar.update(len(batch))
            yield write_block(folder, known, features)


def batched(keys: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """The keys in order, `size` at a time."""
    rest = iter(keys)
    while some := list(itertools.islice(rest, size)):
        yield some


def of_batch(forward: Any, ids: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """Features [B, L, D], 0 where there is no token, by one program whatever B is, up to `size`."""
    more = [(0, size - len(ids)), (0, 0)]
    features = np.asarray(forward(np.pad(ids, more), np.pad(mask, more)))[: len(ids)]
    features = np.where(mask[..., None] > 0, features, 0)
    with np.errstate(over="ignore"):
        kept = features.astype(DTYPE)
    if not np.isfinite(kept).all():
        raise ValueError(f"the text encoder's features are not finite as {DTYPE}")
    return kept


def write_block(folder: pathlib.Path, known: np.ndarray, features: np.ndarray) -> pathlib.Path:
    """The path of a new block, which appears when it is complete."""
    partial = None
    try:
        partial = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=make_folder(folder)))
        for name, array in (("texts.npy", known), ("features.npy", features)):
            with (partial / name).open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        path = folder / partial.name.removeprefix(".")
        os.rename(partial, path)
    except OSError as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{folder} cannot be written: {reason(error)}") from None
    return path
