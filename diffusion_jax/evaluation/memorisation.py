"""Are samples copies of training images? Their nearest neighbours in the pixels, beside those of
held-out images.

Distances are exact. Pixels less 128 are whole numbers of at most 128 in size, so float32 holds
every partial sum of 1024 products of two of them, at most 2^24, without rounding, in whatever order
a matrix product adds them up."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import tqdm

from diffusion_jax.core.errors import UserError
from diffusion_jax.modalities import pictures

EXACT = 1024  # pixel values whose products float32 sums up exactly
# of the distances to the nearest and second nearest training image, under which a sample is
# memorised
RATIO = 1 / 3


class Neighbours(NamedTuple):
    """The k nearest different training images of N samples, nearest first; of those equally near,
    the first in the set.

    index: int64 [N, k], -1 where the set has fewer. distance: float64 [N, k], the root mean square
    over all pixel values of the difference, in units of 0 ... 255; zero for a copy, inf where index
    is -1. mirrored: bool [N, k], whether it is the mirrored training image that is so near."""

    index: np.ndarray
    distance: np.ndarray
    mirrored: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """The distance to the nearest over that to the second nearest, float64 [N] in [0, 1].

        UserError for a training set without two different images, which defines none.
        """
        if self.distance.shape[1] < 2 or not np.isfinite(self.distance[:, 1]).all():
            raise UserError(
                "how near the nearest training image is needs a second nearest: two different "
                "training images"
            )
        return self.distance[:, 0] / self.distance[:, 1]


def nearest(
    samples: np.ndarray,
    source: Any,
    k: int = 3,
    flip: bool = False,
    block: int = 1024,
    progress: bool = False,
) -> Neighbours:
    """The k nearest training images of samples uint8 [N, H, W, C], in the pixels.

    source: has a length, and examples {"image": uint8 [H, W, C]}; it is read once, `block` images
    at a time. Training images of the same pixels count as one, the first, so that every neighbour
    is a different image. With flip a training image is as near as the nearer of itself and its
    mirror image, and images that are each other's mirror image count as one, too. Raises UserError
    for images of other shapes and an empty set."""
    shape = check_samples(samples)
    if k < 1 or block < 1:
        raise UserError(f"k and block must be at least 1, not {k} and {block}")
    if len(source) == 0:
        raise UserError("the training set is empty")
    flat = [samples.reshape(len(samples), -1)]
    flat += [samples[:, :, ::-1].reshape(len(samples), -1)] if flip else []
    found = Candidates.none(len(samples), k)
    with tqdm.tqdm(total=len(source), unit="image", desc="nearest", disable=not progress) as bar:
        for start in range(0, len(source), block):
            numbers = np.arange(start, min(start + block, len(source)))
            images = read(source, numbers, shape)
            digest = digests(images, flip)
            first = np.sort(
                np.unique(digest, return_index=True)[1]
            )  # of the same pixels; `merge` sees to other blocks'
            numbers, digest, training = (
                numbers[first],
                digest[first],
                images[first].reshape(len(first), -1),
            )
            for begin in range(0, len(samples), block):
                rows = slice(begin, begin + block)
                squared = np.stack([squared_distances(side[rows], training) for side in flat])
                closest = best(squared, numbers, digest, k)
                for kept, new in zip(
                    found, merge(Candidates(*(a[rows] for a in found)), closest, k), strict=True
                ):
                    kept[rows] = new
            bar.update(len(images))
    distance = np.sqrt(found.squared / flat[0].shape[1])
    return Neighbours(found.index, distance, found.mirrored)


def check_samples(samples: np.ndarray) -> tuple[int, ...]:
    """The shape of one; UserError unless they are uint8 [N, H, W, C] and at least one."""
    if samples.dtype != np.uint8 or samples.ndim != 4 or not len(samples):
        raise UserError(
            f"samples must be uint8 [N, H, W, C], not {samples.dtype} {list(samples.shape)}"
        )
    return samples.shape[1:]


def read(source: Any, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The images of the source of these numbers, uint8 [n, H, W, C]; UserError where one is not of
    the shape."""
    images = [source[int(i)]["image"] for i in numbers]
    for i, image in zip(numbers, images, strict=True):
        if image.shape != shape or image.dtype != np.uint8:
            raise UserError(
                f"training image {i} is {image.dtype} {list(image.shape)}, but the samples are "
                f"uint8 {list(shape)}"
            )
    return np.stack(images)


def digests(images: np.ndarray, flip: bool) -> np.ndarray:
    """A number, uint64 [n], that only images of the same pixels share; with flip also those that
    are mirror images."""
    number = lambda image: int.from_bytes(
        hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "big"
    )
    of_one = (lambda image: min(number(image), number(image[:, ::-1]))) if flip else number
    return np.array([of_one(image) for image in images], np.uint64)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """uint8 [N, D], [M, D] -> float64 [N, M], exactly."""
    squared = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], EXACT):
        x, y = (images[:, start : start + EXACT].astype(np.float32) - 128 for images in (a, b))
        norms = [np.einsum("nd,nd->n", z, z).astype(np.float64) for z in (x, y)]
        squared += norms[0][:, None] + norms[1] - 2.0 * (x @ y.T)
    return squared


class Candidates(NamedTuple):
    """Training images near each of N samples, nearest first, all arrays [N, k]."""

    squared: np.ndarray  # float64
    index: np.ndarray
    mirrored: np.ndarray
    digest: np.ndarray

    @classmethod
    def none(cls, count: int, k: int) -> "Candidates":
        index = np.full((count, k), -1)
        return cls(
            np.full((count, k), np.inf),
            index,
            np.zeros((count, k), bool),
            np.zeros((count, k), np.uint64),
        )


def best(squared: np.ndarray, numbers: np.ndarray, digest: np.ndarray, k: int) -> Candidates:
    """The k nearest, or all, of M different images of increasing numbers; squared [1 or 2, N, M],
    the second mirrored."""
    nearer = squared.min(axis=0)
    order = nearer * nearer.shape[1] + np.arange(
        nearer.shape[1]
    )  # of those equally near, the first
    k = min(k, nearer.shape[1])
    chosen = np.argpartition(order, k - 1, axis=1)[:, :k]
    chosen = np.take_along_axis(
        chosen, np.take_along_axis(order, chosen, axis=1).argsort(axis=1), axis=1
    )
    distance = np.take_along_axis(nearer, chosen, axis=1)
    mirrored = distance < np.take_along_axis(squared[0], chosen, axis=1)
    return Candidates(distance, numbers[chosen], mirrored, digest[chosen])


def merge(before: Candidates, new: Candidates, k: int) -> Candidates:
    """The k nearest of both, without those of `new` that are among the ones before."""
    again = (new.digest[:, :, None] == before.digest[:, None, :]) & (before.index >= 0)[:, None, :]
    new = new._replace(squared=np.where(again.any(axis=2), np.inf, new.squared))
    new = new._replace(index=np.where(np.isinf(new.squared), -1, new.index))
    both = [np.concatenate(pair, axis=1) for pair in zip(before, new, strict=True)]
    order = np.argsort(both[0], axis=1, kind="stable")[:, :k]
    return Candidates(*(np.take_along_axis(a, order, axis=1) for a in both))


class Copies(NamedTuple):
    """How near N images come to the training set.

    median: of the distances to the nearest training image, root mean square in 0 ... 255. share: of
    the images whose nearest training image is nearer than a third of the distance to the second
    nearest different one, the criterion of Yoon et al. 2023, "Diffusion Probabilistic Models
    Generalize when They Fail to Memorize". exact: the number of those equal to a training image.
    """

    count: int
    median: float
    share: float
    exact: int


def copies(found: Neighbours) -> Copies:
    """The figures of what `nearest` found. UserError for a training set without two different
    images."""
    distance = found.distance[:, 0]
    share = float((found.ratio < RATIO).mean())
    return Copies(len(distance), float(np.median(distance)), share, int((distance == 0).sum()))


class Memorisation(NamedTuple):
    """Of samples, and beside them of held-out images, which the model cannot have copied; the
    neighbours of the samples."""

    samples: Copies
    held_out: Copies
    neighbours: Neighbours


def memorisation(
    samples: np.ndarray,
    held_out: np.ndarray,
    source: Any,
    flip: bool = False,
    progress: bool = False,
) -> Memorisation:
    """Compares how near samples and held-out images, both uint8 [N, H, W, C], come to the training
    images of `source`.

    A model that memorises has a larger share and a smaller median than the held-out images have.
    flip: the model was trained on mirrored images, too. Raises UserError as `nearest` does, and for
    fewer than two different training images."""
    if check_samples(samples) != check_samples(held_out):
        raise UserError(
            f"samples of shape {list(samples.shape[1:])} and held-out images of "
            f"{list(held_out.shape[1:])}"
        )
    both = nearest(np.concatenate([samples, held_out]), source, flip=flip, progress=progress)
    count = len(samples)
    of_samples, of_held_out = (
        Neighbours(*(a[part] for a in both)) for part in (slice(count), slice(count, None))
    )
    return Memorisation(copies(of_samples), copies(of_held_out), of_samples)


def picture(samples: np.ndarray, source: Any, found: Neighbours, rows: int = 10) -> np.ndarray:
    """The samples of the smallest ratios, smallest first, each in a row with its nearest training
    images: uint8 [., ., C].

    A mirrored neighbour is shown mirrored; where there is none, the place is dark. samples and
    source are those of `found`."""
    chosen = np.argsort(found.ratio, kind="stable")[:rows]
    columns = [samples[chosen]]
    for index, mirrored in zip(found.index[chosen].T, found.mirrored[chosen].T, strict=True):
        column = np.full_like(columns[0], pictures.DARK)
        for place, (i, mirror) in enumerate(zip(index, mirrored, strict=True)):
            if i >= 0:
                image = source[int(i)]["image"]
                column[place] = image[:, ::-1] if mirror else image
        columns.append(column)
    return pictures.tile(np.concatenate(columns), len(chosen))
