"""The Fréchet distance and its statistics: closed forms, SciPy, and laws that hold on any split
into blocks."""

import numpy as np
import pytest
import scipy.linalg

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import frechet
from diffusion_jax.evaluation.frechet import Statistics, frechet_distance


def rng(seed=0):
    return np.random.default_rng(seed)


def fitted(features, **record):
    return frechet.statistics([features], record)


def correlated(seed, count, width, shift=0.0):
    draw = rng(seed)
    return draw.normal(size=(count, width)) @ draw.normal(size=(width, width)) + shift


def test_diagonal_gaussians():
    mean_a, mean_b = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 1.0])
    deviation_a, deviation_b = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0])
    a, b = (
        Statistics(mean_a, np.diag(deviation_a**2), 9),
        Statistics(mean_b, np.diag(deviation_b**2), 9),
    )
    # |difference of means|^2 + |difference of standard deviations|^2, dimension by dimension
    np.testing.assert_allclose(frechet_distance(a, b), 0.25 + 9.0 + 1.0 + 2.25, rtol=1e-14)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_as_with_scipys_square_root(width):
    a, b = fitted(correlated(1, 300, width)), fitted(correlated(2, 200, width, shift=1.0))
    product = np.asarray(scipy.linalg.sqrtm(a.covariance @ b.covariance)).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * product)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)


@pytest.mark.parametrize("count", [20, 400])
def test_copies_are_at_zero(count):
    features = 100.0 * correlated(3, count, 60, shift=5.0)
    assert frechet_distance(fitted(features), fitted(features)) < 1e-6
    assert frechet_distance(fitted(features), fitted(features[::-1])) < 1e-6


def test_fewer_samples_than_dimensions():
    a, b = correlated(4, 12, 60), correlated(5, 25, 60)
    there, back = frechet_distance(fitted(a), fitted(b)), frechet_distance(fitted(b), fitted(a))
    assert isinstance(there, float) and np.isfinite(there) and there > 0
    np.testing.assert_allclose(there, back, rtol=1e-12)
    # The rows of both lie in a space of 12 - 1 + 25 - 1 + 1 dimensions, and the distance doesn't
    # change within it.
    basis = np.linalg.qr(np.concatenate([a, b]).T)[0]
    np.testing.assert_allclose(
        there, frechet_distance(fitted(a @ basis), fitted(b @ basis)), rtol=1e-10
    )


def test_a_constant_feature():
    a, b = np.ones((5, 3)), np.full((7, 3), 3.0)
    assert frechet_distance(fitted(a), fitted(b)) == 12.0


def test_singular_gaussians_in_closed_form():
    # In a common plane the covariances are diag(4, 0) and diag(1, 9): (2 - 1)^2 + (0 - 3)^2.
    rotation = np.linalg.qr(rng().normal(size=(6, 6)))[0]
    place = lambda *variances: rotation @ np.diag([*variances, 0, 0, 0, 0]) @ rotation.T
    a, b = Statistics(np.zeros(6), place(4, 0), 9), Statistics(np.zeros(6), place(1, 9), 9)
    np.testing.assert_allclose(frechet_distance(a, b), 10.0, rtol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [2, 3, 50], list(range(1, 100))])
def test_any_split_into_blocks(cuts):
    features = correlated(6, 100, 7, shift=1e4).astype(np.float32)
    found = frechet.statistics(np.split(features, cuts))
    exact = features.astype(np.float64)
    assert found.count == 100 and found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(
        found.covariance, np.cov(exact, rowvar=False), rtol=1e-10, atol=1e-10
    )


def test_blocks_are_read_one_by_one():
    def blocks():
        for seed in range(5):
            yield rng(seed).normal(size=(seed, 3))  # the first one is empty

    whole = np.concatenate(list(blocks()))
    np.testing.assert_allclose(
        frechet.statistics(blocks()).covariance, np.cov(whole, rowvar=False), rtol=1e-13
    )


@pytest.mark.parametrize("count", [5, 90])
def test_roots(count):
    features = correlated(7, count, 20)
    covariance = np.cov(features, rowvar=False)
    for root in (frechet.root(covariance), frechet.root_of_features(features)):
        assert len(root) <= min(count, 20)
        np.testing.assert_allclose(root.T @ root, covariance, atol=1e-12 * covariance.max())


def test_bad_features():
    for blocks, complaint in (
        ([], "two examples, not 0"),
        ([np.ones((1, 3))], "two examples, not 1"),
        ([np.full((4, 3), np.nan)], "finite"),
    ):
        with pytest.raises(UserError, match=complaint):
            frechet.statistics(blocks)


def test_statistics_of_different_kinds_are_not_compared():
    a = correlated(8, 9, 3)
    with pytest.raises(UserError, match="3 and of 2 features"):
        frechet_distance(fitted(a), fitted(a[:, :2]))
    with pytest.raises(UserError, match="different weights .*: 12 and 34"):
        frechet_distance(fitted(a, weights="12"), fitted(a, weights="34"))
    assert (
        frechet_distance(
            fitted(a, weights="12", split="train"), fitted(a, weights="12", split="test")
        )
        < 1e-9
    )
    assert frechet_distance(fitted(a, weights="12"), fitted(a)) < 1e-9


def test_a_file_of_statistics(tmp_path):
    record = {"data": "cifar10", "split": "train", "preprocessing": "none", "weights": "9cc9"}
    stored = fitted(correlated(9, 30, 4), **record)
    frechet.save(tmp_path / "s.npz", stored)
    found = frechet.load(tmp_path / "s.npz")
    assert (found.count, found.record) == (30, record)
    np.testing.assert_array_equal(found.mean, stored.mean)
    np.testing.assert_array_equal(found.covariance, stored.covariance)
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_files_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no file of statistics"):
        frechet.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("mean")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    np.savez(tmp_path / "shape.npz", mean=np.zeros(3), covariance=np.eye(2), count=2, record="{}")
    for name in ("text.npz", "other.npz", "shape.npz"):
        with pytest.raises(UserError, match=f"{name} is no file of statistics: "):
            frechet.load(tmp_path / name)


REFERENCE = Statistics(np.zeros(3), np.diag([1.0, 2.0, 0.5]), 10**6)


def samples(seed, count):
    return rng(seed).normal(size=(count, 3)) * [1.5, 1.0, 1.0] + [0.3, 0.0, 0.0]


def intervals(features, reference, **options):
    return frechet.bootstrap(
        features, reference, frechet.infinite(features, reference, points=5), **options
    )


def test_bootstrap_has_the_spread_of_new_samples():
    distances = [frechet_distance(fitted(samples(seed, 200)), REFERENCE) for seed in range(1000)]
    both = [
        intervals(samples(seed, 200), REFERENCE, replicates=100, level=0.9)
        for seed in range(1000, 1020)
    ]
    near = [interval for interval, _ in both]
    errors = [interval.standard_error for interval in near]
    np.testing.assert_allclose(np.mean(errors), np.std(distances), rtol=0.15)
    assert all(low < high for low, high, _ in near)
    np.testing.assert_allclose(
        np.mean([high - low for low, high, _ in near]), 2 * 1.645 * np.mean(errors), rtol=0.1
    )
    held = np.mean([interval.low < np.mean(distances) < interval.high for interval in near])
    assert held >= 0.7  # of 20 intervals at 90 %
    # (1.5 - 1)^2 + (1 - sqrt 2)^2 + (1 - sqrt 0.5)^2 + 0.3^2, of infinitely many samples
    exact = 0.25 + (2**0.5 - 1) ** 2 + (1 - 0.5**0.5) ** 2 + 0.09
    assert np.mean([interval.low < exact < interval.high for _, interval in both]) >= 0.7


def test_bootstrap_lies_about_the_distance_in_many_dimensions():
    """Where N is of the size of D, drawing with replacement alone would shift every replicate
    beyond the distance."""
    features, reference = rng().normal(size=(40, 30)), Statistics(np.zeros(30), np.eye(30), 10**6)
    near, far = intervals(features, reference, replicates=40)
    assert near.low < frechet_distance(fitted(features), reference) < near.high
    assert far.low < frechet.infinite(features, reference, points=5).distance < far.high
    assert intervals(features, reference, replicates=40) == (near, far)


def test_rows_in_a_file_are_read_in_blocks(tmp_path, monkeypatch):
    features = rng(2).normal(size=(500, 8)).astype(np.float32)
    np.save(tmp_path / "f.npy", features)
    reference = Statistics(np.zeros(8), np.eye(8), 10**6)
    whole = frechet.infinite(features.astype(np.float64), reference)
    monkeypatch.setattr(frechet, "BLOCK", 64)
    found = frechet.infinite(np.load(tmp_path / "f.npy", mmap_mode="r"), reference)
    np.testing.assert_allclose(found.distances, whole.distances, rtol=1e-9)


def test_infinitely_many_samples():
    """N samples of the reference's own distribution are at c / N, infinitely many at zero."""
    width = 20
    reference = Statistics(np.zeros(width), np.eye(width), 10**6)
    features = rng(1).normal(size=(4000, width))
    found = frechet.infinite(features, reference, least=400, points=8)
    assert (
        found.counts[0] == 400
        and found.counts[-1] == 4000
        and len(found.counts) == len(found.distances) == 8
    )
    # tr cov / N of the mean; of the covariance to second order |S - 1|^2 / 4, whose mean is D (D +
    # 1) / (4 N)
    np.testing.assert_allclose(found.slope, width + width * (width + 1) / 4, rtol=0.15)
    assert abs(found.distance) < 0.1 * found.distances[-1] < 0.01
    np.testing.assert_allclose(
        found.distances[-1], frechet_distance(fitted(features), reference), rtol=1e-9
    )


@pytest.mark.parametrize("sizes", [{"points": 1}, {"least": 50}, {"least": 1}])
def test_sizes_that_make_no_line(sizes):
    with pytest.raises(UserError, match="two sizes or more"):
        frechet.infinite(samples(0, 50), REFERENCE, **sizes)
