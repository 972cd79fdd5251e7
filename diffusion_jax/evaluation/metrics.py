"""Metrics of two sets of features, matrices [N, D]: KID, precision and recall, density and
coverage; and the Inception Score of class probabilities. NumPy, float64, in blocks that bound the
memory."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError

BLOCK = 1 << 24  # numbers at most in a block of a matrix of pairs: 128 MB


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[slice]:
    """Slices of the rows of a, so few that a block of pairs with all of b stays within BLOCK."""
    size = max(1, BLOCK // max(1, len(b)))
    return (slice(start, min(start + size, len(a))) for start in range(0, len(a), size))


def _checked(*sets: np.ndarray) -> list[np.ndarray]:
    """The sets in float64; UserError unless they are finite matrices of one width."""
    sets64 = [np.asarray(x, np.float64) for x in sets]
    if any(x.ndim != 2 or x.shape[1] != sets64[0].shape[1] or not len(x) for x in sets64):
        raise UserError(
            "features must be matrices [N, D] of one D, not "
            f"{', '.join(str(list(x.shape)) for x in sets64)}"
        )
    if not all(np.isfinite(x).all() for x in sets64):
        raise UserError("the features must be finite")
    return sets64


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, D], [M, D] -> [N, M]."""
    return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2.0 * (a @ b.T), 0.0)


def _mean_kernel(x: np.ndarray, y: np.ndarray | None = None) -> float:
    """The mean of k(x_i, y_j) over all pairs, without y over all pairs of different rows of x."""
    other, width = x if y is None else y, x.shape[1]
    total = sum((((x[rows] @ other.T) / width + 1.0) ** 3).sum() for rows in _blocks(x, other))
    if y is not None:
        return total / (len(x) * len(y))
    return (total - (((x**2).sum(axis=1) / width + 1.0) ** 3).sum()) / (len(x) * (len(x) - 1))


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The squared maximum mean discrepancy, unbiased, of the kernel (x.y / D + 1)^3 (Gretton et al.
    2012, eq. 3).

    Zero in the mean where both sets are of one distribution, so it may be negative. At least two
    rows each."""
    x, y = _checked(x, y)
    if min(len(x), len(y)) < 2:
        raise UserError("an unbiased estimate needs at least two rows of each set")
    return float(_mean_kernel(x) + _mean_kernel(y) - 2.0 * _mean_kernel(x, y))


class Kid(NamedTuple):
    """mean and standard deviation over the subsets; times 1000 in many tables."""

    mean: float
    deviation: float


def kid(x: np.ndarray, y: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0) -> Kid:
    """The kernel distance of Bińkowski et al. 2018, KID where the features are Inception's: the
    mean `mmd` of random subsets.

    Each takes `size` different rows of each set. Raises UserError where a set has fewer.
    """
    x, y = _checked(x, y)
    if not 2 <= size <= min(len(x), len(y)):
        raise UserError(
            f"subsets of {size} rows need sets of at least as many, and two, not {len(x)} and "
            f"{len(y)}"
        )
    rng = np.random.default_rng(seed)
    draw = lambda rows: rows[rng.choice(len(rows), size, replace=False)]
    values = [mmd(draw(x), draw(y)) for _ in range(subsets)]
    return Kid(float(np.mean(values)), float(np.std(values)))


def _squared_radii(points: np.ndarray, k: int) -> np.ndarray:
    """The squared distance from each point to its k-th nearest other one, [N]."""
    if not 1 <= k < len(points):
        raise UserError(f"{k} nearest neighbours need more points than {len(points)}")
    radii = np.empty(len(points))
    for rows in _blocks(points, points):
        squared = _squared_distances(points[rows], points)
        squared[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = np.inf
        radii[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii


def _share_within(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    """The share of points within a ball about any centre that reaches to the centre's k-th nearest
    neighbour."""
    radii = _squared_radii(centres, k)
    inside = [
        (_squared_distances(points[rows], centres) <= radii).any(axis=1)
        for rows in _blocks(points, centres)
    ]
    return float(np.concatenate(inside).mean())


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eq. 1-3): the share of each set in
    the other's manifold."""
    real, fake = _checked(real, fake)
    return PrecisionRecall(_share_within(fake, real, k), _share_within(real, fake, k))


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, eq. 4 and 5) of the balls, open as in their code,
    about real points.

    density: how many balls a fake point lies in, over k, in the mean; may exceed 1. coverage: the
    share of balls with a fake point."""
    real, fake = _checked(real, fake)
    radii, lies_in, covered = _squared_radii(real, k), 0, np.zeros(len(real), bool)
    for rows in _blocks(fake, real):
        inside = _squared_distances(fake[rows], real) < radii
        lies_in += inside.sum()
        covered |= inside.any(axis=0)
    return DensityCoverage(float(lies_in / (k * len(fake))), float(covered.mean()))


def softmax(logits: np.ndarray) -> np.ndarray:
    """[N, K] -> probabilities [N, K], float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


class InceptionScore(NamedTuple):
    """mean and standard deviation over the splits."""

    mean: float
    deviation: float


def inception_score(probabilities: np.ndarray, splits: int = 10) -> InceptionScore:
    """exp of the mean KL(p(y|x) | p(y)) (Salimans et al. 2016), between 1 and K, of probabilities
    [N, K].

    The set is cut into consecutive splits, each with its own p(y). Raises UserError where rows are
    no probabilities."""
    if probabilities.ndim != 2 or not 1 <= splits <= len(probabilities):
        raise UserError(
            f"{splits} splits need as many rows of probabilities [N, K], not "
            f"{list(probabilities.shape)}"
        )

    def score(part):
        p = np.asarray(part, np.float64)
        if not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1.0, atol=1e-4):
            raise UserError("probabilities must be at least 0 and sum to 1 in every row")
        ratio = np.divide(p, p.mean(axis=0), out=np.ones_like(p), where=p > 0)  # 0 log 0 = 0
        return np.exp((p * np.log(ratio)).sum(axis=1).mean())

    scores = [score(part) for part in np.array_split(probabilities, splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
