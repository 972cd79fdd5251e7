"""The metrics of feature matrices against their definitions, pair by pair, and on sets whose answer
is known."""

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import metrics


@pytest.fixture(params=[metrics.BLOCK, 50, 1], ids=["whole", "blocks", "rows"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", request.param)


def points(seed, count, width=2, shift=0.0):
    return np.random.default_rng(seed).normal(size=(count, width)) + shift


def kernel(x, y):
    return (sum(a * b for a, b in zip(x, y, strict=True)) / len(x) + 1) ** 3


def distance(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) ** 0.5


def radius(centres, i, k):
    """From centre i to its k-th nearest other one."""
    return sorted(distance(centres[i], other) for j, other in enumerate(centres) if j != i)[k - 1]


@pytest.mark.usefixtures("blocks")
def test_mmd_pair_by_pair():
    x, y = points(0, 9, 4), points(1, 6, 4, shift=0.5)
    within = lambda a: np.mean(
        [kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]
    )
    across = np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(metrics.mmd(x, y), within(x) + within(y) - 2 * across, rtol=1e-12)


def test_mmd_is_unbiased():
    values = [metrics.mmd(points(2 * i, 8), points(2 * i + 1, 5)) for i in range(4000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0 < max(values)


def test_mmd_of_shifted_gaussians():
    """For x.y in one dimension E (x y + 1)^3 = E x^3 E y^3 + 3 E x^2 E y^2 + 3 E x E y + 1."""
    moments = lambda m: np.array([1, m, m**2 + 1, m**3 + 3 * m]) * np.sqrt([1, 3, 3, 1])
    expected = ((moments(0.0) - moments(0.5)) ** 2).sum()
    values = [
        metrics.mmd(points(i, 200, 1), points(i + 999, 200, 1, shift=0.5)) for i in range(200)
    ]
    np.testing.assert_allclose(np.mean(values), expected, rtol=0.1)


def test_kid_is_the_mean_over_subsets():
    x, y = points(0, 30, 3), points(1, 40, 3, shift=1.0)
    assert metrics.kid(x, y, subsets=20, size=10) == metrics.kid(x, y, subsets=20, size=10)
    assert metrics.kid(x, y, subsets=20, size=10) != metrics.kid(x, y, subsets=20, size=10, seed=1)
    found = metrics.kid(x, y, subsets=3000, size=10)
    # Random subsets without replacement have the whole sets' value in the mean.
    np.testing.assert_allclose(
        found.mean, metrics.mmd(x, y), atol=4 * found.deviation / np.sqrt(3000)
    )
    assert found.deviation > 0
    whole = metrics.kid(x[:30], y[:30], subsets=3, size=30)
    np.testing.assert_allclose(whole, (metrics.mmd(x[:30], y[:30]), 0.0), atol=1e-12)


@pytest.mark.parametrize("size", [1, 11])
def test_subsets_that_cannot_be(size):
    with pytest.raises(UserError, match=f"subsets of {size} rows"):
        metrics.kid(points(0, 10), points(1, 20), size=size)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_definition(k):
    real = np.concatenate([points(0, 20), points(2, 5, shift=-9.0)])
    fake = np.concatenate([points(1, 14, shift=0.3), points(3, 4, shift=9.0)])

    def share(inside, centres):
        hit = lambda p: any(
            distance(p, centre) <= radius(centres, i, k) for i, centre in enumerate(centres)
        )
        return np.mean([hit(p) for p in inside])

    found = metrics.precision_recall(real, fake, k)
    np.testing.assert_allclose(found, (share(fake, real), share(real, fake)), rtol=1e-15)
    assert 0 < found.precision < 1 and 0 < found.recall < 1 and found.precision != found.recall


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_by_definition(k):
    real, fake = points(2, 25), points(3, 18, shift=0.7)
    inside = np.array(
        [[distance(p, centre) < radius(real, i, k) for p in fake] for i, centre in enumerate(real)]
    )
    found = metrics.density_coverage(real, fake, k)
    np.testing.assert_allclose(
        found, (inside.sum() / (k * len(fake)), inside.any(axis=1).mean()), rtol=1e-15
    )
    assert 0 < found.coverage < 1


def test_identical_and_disjoint_sets():
    x = (
        np.random.default_rng(0).integers(-(10**6), 10**6, (40, 2)).astype(float)
    )  # whole numbers: ties are exact
    assert metrics.precision_recall(x, x) == (1.0, 1.0)
    assert metrics.density_coverage(x, x) == (1.0, 1.0)
    far = x + 1e8
    assert metrics.precision_recall(x, far) == (0.0, 0.0)
    assert metrics.density_coverage(x, far) == (0.0, 0.0)


def test_a_set_that_misses_a_mode():
    low, high = points(0, 30), points(1, 30, shift=100.0)
    real, fake = np.concatenate([low, high]), low + 1e-6
    assert metrics.precision_recall(real, fake) == (1.0, 0.5)
    assert metrics.density_coverage(real, fake).coverage == 0.5


def test_a_ball_is_closed_for_precision_and_open_for_density():
    real, fake = np.array([[0.0, 0], [1, 0], [3, 0]]), np.array([[-1.0, 0], [-1, 0.5]])
    assert metrics.precision_recall(real, fake, k=1).precision == 0.5
    assert metrics.density_coverage(real, fake, k=1).density == 0.0


def test_more_neighbours_than_points():
    with pytest.raises(UserError, match="3 nearest neighbours need more points than 3"):
        metrics.precision_recall(points(0, 3), points(1, 9), k=3)


@pytest.mark.parametrize(
    "metric", [metrics.mmd, metrics.precision_recall, metrics.density_coverage]
)
def test_features_that_are_none(metric):
    for bad in (points(0, 9, 3), np.zeros(9), np.zeros((0, 2))):
        with pytest.raises(UserError, match="of one D"):
            metric(points(0, 9), bad)
    with pytest.raises(UserError, match="finite"):
        metric(points(0, 9), np.full((9, 2), np.inf))


def test_inception_score_of_known_classes():
    one_hot = np.eye(7)[np.arange(70) % 7]
    np.testing.assert_allclose(metrics.inception_score(one_hot, splits=10), (7.0, 0.0), atol=1e-12)
    np.testing.assert_allclose(
        metrics.inception_score(np.full((70, 7), 1 / 7)), (1.0, 0.0), atol=1e-12
    )
    np.testing.assert_allclose(
        metrics.inception_score(np.repeat(np.eye(7), 10, axis=0), splits=7), (1.0, 0.0), atol=1e-12
    )


def test_inception_score_by_definition():
    p = metrics.softmax(3 * points(0, 20, 6))
    scores = []
    for part in (p[:7], p[7:14], p[14:]):
        marginal = part.sum(axis=0) / len(part)
        scores.append(
            np.exp(
                np.mean(
                    [
                        sum(q * np.log(q / m) for q, m in zip(row, marginal, strict=True))
                        for row in part
                    ]
                )
            )
        )
    np.testing.assert_allclose(
        metrics.inception_score(p, splits=3), (np.mean(scores), np.std(scores)), rtol=1e-12
    )


def test_softmax_of_large_logits():
    np.testing.assert_allclose(
        metrics.softmax(np.array([[1000.0, 1000.0 + np.log(3.0)]])), [[0.25, 0.75]], rtol=1e-12
    )


@pytest.mark.parametrize(
    ("rows", "splits", "complaint"),
    [
        ([[0.5, 0.6]], 1, "sum to 1"),
        ([[1.5, -0.5]], 1, "sum to 1"),
        ([[np.nan, 1]], 1, "sum to 1"),
        ([[1, 0]], 2, "2 splits"),
    ],
)
def test_probabilities_that_are_none(rows, splits, complaint):
    with pytest.raises(UserError, match=complaint):
        metrics.inception_score(np.array(rows), splits)
