"""The Fréchet distance of two Gaussians fitted to features: FID where they are Inception's (Heusel
et al. 2017).

All in NumPy and float64. Features are matrices [N, D]. FID is biased upwards by about c / N: only
numbers of the same N compare, or those of `infinite` (Chong & Forsyth 2020)."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError


class Moments(NamedTuple):
    """Of `count` rows: the mean [D] and the scatter [D, D], the sum of the outer products of
    deviations from the mean."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased one, over count - 1."""
        return self.scatter / (self.count - 1)


def moments(features: np.ndarray) -> Moments:
    """Of one block of features [N, D]. Raises UserError where one is not finite."""
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        raise UserError("the features must be finite")
    mean = features.mean(axis=0)
    deviations = features - mean
    return Moments(len(features), mean, deviations.T @ deviations)


def merge(a: Moments, b: Moments) -> Moments:
    """Of the rows of both, without the cancellation of sums of squares (Chan, Golub & LeVeque 1983,
    eq. 2.1)."""
    count, shift = a.count + b.count, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, a.mean + shift * (b.count / count), scatter)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What a Fréchet distance needs of a data set, and what tells where it came from.

    mean [D] and covariance [D, D], float64, of `count` examples. record: plain values such as the
    data set, its split, the preprocessing and the weights' fingerprint."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int
    record: dict = dataclasses.field(default_factory=dict)


def statistics(blocks: Iterable[np.ndarray], record: dict | None = None) -> Statistics:
    """Of features that come in blocks [n, D] of any lengths; memory is that of one block and of D x
    D.

    Raises UserError for fewer than two rows in all.
    """
    whole = functools.reduce(
        merge,
        (moments(block) for block in blocks if len(block)),
        Moments(0, np.zeros(1), np.zeros(1)),
    )
    if whole.count < 2:
        raise UserError(f"a covariance needs at least two examples, not {whole.count}")
    return Statistics(whole.mean, whole.covariance, whole.count, record or {})


def save(path: str | pathlib.Path, value: Statistics) -> None:
    """Writes an NPZ of mean, covariance, count and the record as JSON, whole or not at all."""
    partial = pathlib.Path(f"{path}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            mean=value.mean,
            covariance=value.covariance,
            count=value.count,
            record=json.dumps(value.record),
        )
    os.replace(partial, path)


def load(path: str | pathlib.Path) -> Statistics:
    """What `save` wrote, or others' NPZ of `mu` and `sigma`, whose count, 0 here, is unknown.
    UserError for any other file."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"no file of statistics {path}")
    try:
        with pathlib.Path(path).open("rb") as opened, np.load(opened) as file:
            if {"mu", "sigma"} <= set(file.files):
                value = Statistics(
                    np.asarray(file["mu"], float), np.asarray(file["sigma"], float), 0
                )
            else:
                value = Statistics(
                    file["mean"],
                    file["covariance"],
                    int(file["count"]),
                    json.loads(str(file["record"])),
                )
    except Exception as error:  # a zip's, NumPy's or JSON's
        raise UserError(
            f"{path} is no file of statistics: {' '.join(str(error).split())[:160]}"
        ) from None
    mean, covariance = value.mean, value.covariance
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise UserError(
            f"{path} is no file of statistics: mean {mean.shape}, covariance {covariance.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path} is no file of statistics: not all its numbers are finite")
    rounding = 1e-6 * np.abs(covariance).max(initial=0.0)
    if (np.diag(covariance) < 0).any() or not np.allclose(covariance, covariance.T, atol=rounding):
        raise UserError(
            f"{path} is no file of statistics: its covariance is none, which is symmetric with a "
            "diagonal from 0"
        )
    return value


def root(covariance: np.ndarray) -> np.ndarray:
    """R [r, D] with R^T R = covariance, by its eigenvalues; those within rounding of zero are left
    out."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values.max() * len(values) * np.finfo(np.float64).eps
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def root_of_features(features: np.ndarray) -> np.ndarray:
    """R with R^T R = the covariance of features [N, D], from the features themselves."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return (
        np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred
    )


def distance_of_roots(
    mean_a: np.ndarray, root_a: np.ndarray, mean_b: np.ndarray, root_b: np.ndarray
) -> float:
    """|mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Dowson & Landau 1982), S =
    R^T R.

    The last trace is the sum of the singular values of R_a R_b^T: the squares of these are the
    eigenvalues of S_a^1/2 S_b S_a^1/2, whose square roots would have half the digits where S is
    singular."""
    spread = (root_a**2).sum() + (root_b**2).sum()
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + spread - 2.0 * shared))


SAME = ("preprocessing", "weights")  # of two records, for their features to be of one kind


def check_same(a: dict, b: dict) -> None:
    """Raises UserError where two records are of features of different kinds."""
    for key in SAME:
        if key in a and key in b and a[key] != b[key]:
            raise UserError(
                f"statistics of different {key} don't compare: {a[key] or 'none'} and "
                f"{b[key] or 'none'}"
            )


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """The squared Fréchet distance of the two Gaussians: FID. Raises UserError where the features
    are of different kinds."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"statistics of {len(a.mean)} and of {len(b.mean)} features don't compare")
    check_same(a.record, b.record)
    return distance_of_roots(a.mean, root(a.covariance), b.mean, root(b.covariance))


BLOCK = 4096  # rows of features that are read at a time


def of_rows(
    features: np.ndarray, record: dict | None = None, index: np.ndarray | None = None
) -> Statistics:
    """The statistics of features [N, D], of those at `index` alone, read in blocks from where they
    are mapped."""
    blocks = range(0, len(features if index is None else index), BLOCK)
    rows = lambda part: features[part] if index is None else features[index[part]]
    return statistics((np.asarray(rows(slice(start, start + BLOCK))) for start in blocks), record)


def _distances(
    features: np.ndarray, reference: Statistics, chosen: Iterable[np.ndarray]
) -> np.ndarray:
    """The Fréchet distance of each choice of rows of features [N, D] to the reference; memory is of
    BLOCK x D and D x D."""
    reference_root, distances = root(reference.covariance), []
    for index in chosen:
        if len(index) <= features.shape[1]:
            x = np.asarray(features[index], np.float64)
            mean, own_root = x.mean(axis=0), root_of_features(x)
        else:
            x = of_rows(features, index=index)
            mean, own_root = x.mean, root(x.covariance)
        distances.append(distance_of_roots(mean, own_root, reference.mean, reference_root))
    return np.array(distances)


class Extrapolation(NamedTuple):
    """distance + slope / count, fitted to the distances [K] of counts [K] of samples."""

    distance: float
    slope: float
    counts: np.ndarray
    distances: np.ndarray


def line(counts: np.ndarray, distances: np.ndarray) -> Extrapolation:
    slope, distance = np.polyfit(1.0 / counts, distances, 1)
    return Extrapolation(float(distance), float(slope), counts, distances)


def infinite(
    features: np.ndarray,
    reference: Statistics,
    least: int | None = None,
    points: int = 15,
    seed: int = 0,
) -> Extrapolation:
    """FID-infinity (Chong & Forsyth 2020): the Fréchet distance, linear in 1 / N, extrapolated to
    infinitely many samples.

    features [N, D], may be memory-mapped: subsets of `points` sizes, from `least` (N / 10 unless
    told) to N, are drawn from them without replacement; the last distance is that of all of them.
    The reference's own bias remains. Raises UserError for sizes that make no line."""
    count = len(features)
    least = max(2, count // 10) if least is None else least
    if points < 2 or not 2 <= least < count:
        raise UserError(
            f"extrapolating needs two sizes or more, from 2 up to fewer than {count}, not "
            f"{points} from {least}"
        )
    rng, counts = np.random.default_rng(seed), np.linspace(least, count, points).astype(int)
    return line(
        counts,
        _distances(
            features, reference, (rng.choice(count, size, replace=False) for size in counts)
        ),
    )


class Interval(NamedTuple):
    low: float
    high: float
    standard_error: float


def bootstrap(
    features: np.ndarray,
    reference: Statistics,
    found: Extrapolation,
    replicates: int = 50,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Interval, Interval]:
    """Confidence intervals (Efron 1979) of the Fréchet distance of N samples [N, D] and of `found`,
    its `infinite`.

    A replicate is N rows drawn with replacement; its own line goes through the smallest, the middle
    and the largest of the counts of `found`. It has fewer distinct rows and so a larger bias than
    the N samples: only the replicates' spread about their own mean is used therefore, and the
    intervals lie about the samples' own two figures."""
    rng, count = np.random.default_rng(seed), len(features)
    counts = np.unique([found.counts[0], found.counts[len(found.counts) // 2], found.counts[-1]])
    drawn = []
    for _ in range(replicates):
        rows = rng.integers(
            count, size=count
        )  # the first n of them are n drawn with replacement, too
        distances = _distances(features, reference, (rows[:size] for size in counts))
        drawn.append((distances[-1], line(counts, distances).distance))

    def interval(whole: float, values: np.ndarray) -> Interval:
        low, high = np.quantile(values - values.mean(), [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(whole + low), float(whole + high), float(values.std(ddof=1)))

    near, far = np.transpose(drawn)
    return interval(found.distances[-1], near), interval(found.distance, far)
