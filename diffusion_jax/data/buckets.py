"""Images of several sizes: every image in the bucket of the nearest proportions, and the order in
which batches, each of one bucket, are read."""

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np


def parse(texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """The (height, width) of buckets such as "48x80". Raises ValueError for others."""
    found = [re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text) for text in texts]
    for text, size in zip(texts, found, strict=True):
        if size is None:
            raise ValueError(f"a bucket is height x width, as 48x80, not {text!r}")
    sizes = tuple((int(size[1]), int(size[2])) for size in found if size)
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"no bucket may be named twice, as in {','.join(texts)}")
    return sizes


def nearest(sizes: np.ndarray, buckets: Sequence[tuple[int, int]]) -> np.ndarray:
    """int [N]: the bucket of the nearest proportions, of images of sizes int [N, 2]: nearest in the
    logarithm of height / width, and the first of several."""
    ratio = lambda size: np.log(np.maximum(size[..., 0], 1)) - np.log(np.maximum(size[..., 1], 1))
    apart = ratio(np.asarray(sizes))[:, None] - ratio(np.asarray(buckets))
    return np.argmin(np.abs(apart), axis=1)


def notes(sizes: Sequence[tuple[int, int]], bucket: np.ndarray | None) -> list[str]:
    """How many images each bucket has, in words."""
    if bucket is None:
        return []
    counts = np.bincount(bucket, minlength=len(sizes))
    each = (f"{h} x {w} ({count:,})" for (h, w), count in zip(sizes, counts, strict=True))
    return [f"buckets of images: {', '.join(each)}"]


def turns(counts: Sequence[int], seed: int) -> Callable[[int], tuple[int, int]]:
    """Number of a batch -> (its bucket, how many batches of that bucket come before it).

    counts: images of each bucket, some above 0. In a round of batches every bucket has its share,
    exactly; each of them lies at a random place in its own of as many equal stretches of the round.
    So every bucket is at any time within as many batches of its share as there are buckets."""
    shares = np.asarray(counts) // np.gcd.reduce(counts)
    owner = np.repeat(np.arange(len(shares)), shares)
    rank = np.concatenate([np.arange(share) for share in shares])

    @functools.lru_cache(maxsize=2)
    def order(number):
        rng = np.random.default_rng((seed, number))
        chosen = np.argsort((rank + rng.random(len(rank))) / shares[owner])
        return owner[chosen], rank[chosen]

    def turn(batch):
        number, place = divmod(batch, len(rank))
        owners, ranks = order(number)
        bucket = int(owners[place])
        return bucket, number * int(shares[bucket]) + int(ranks[place])

    return turn
