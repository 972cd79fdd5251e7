"""All scores of a set of images against a reference, as plain values for a report."""

import numpy as np

from diffusion_jax.evaluation import frechet, metrics
from diffusion_jax.evaluation.extract import Extracted
from diffusion_jax.evaluation.references import ROWS, Reference, check_width

SUBSET = (
    1000  # rows of KID's subsets; half of the rows that there are where these are fewer than 2000
)
SPLITS = 10  # of the Inception Score


def scores(
    extracted: Extracted, count: int, reference: Reference, replicates: int = 20, subsets: int = 100
) -> dict:
    """Of the first `count` images whose features there are.

    fid: with replicates > 0 an object with its 95 % interval, and `fid_infinity` beside it. kid,
    precision and recall, density and coverage need the reference's rows, of which as many are taken
    as of the samples', at random, ROWS at most."""
    features = extracted.get("features", count)
    check_width(0 if features is None else features.shape[1], reference)
    assert features is not None  # a width of 0 compares with nothing
    found: dict = {"fid": {"value": distance(features, reference.statistics)}}
    if replicates:
        line = frechet.infinite(features, reference.statistics)
        near, far = frechet.bootstrap(features, reference.statistics, line, replicates)
        found["fid"] |= near._asdict()
        found["fid_infinity"] = {"value": line.distance} | far._asdict()
    spatial = extracted.get("spatial", count)
    if spatial is not None and reference.spatial is not None:
        found["spatial_fid"] = distance(spatial, reference.spatial)
    if reference.rows is not None:
        some = min(count, len(reference.rows), ROWS)
        rng = np.random.default_rng(0)
        draw = lambda rows: np.asarray(rows[np.sort(rng.permutation(len(rows))[:some])], np.float64)
        real, fake = draw(reference.rows), draw(features)
        size = min(SUBSET, max(2, some // 2))
        found["kid"] = metrics.kid(fake, real, subsets, size)._asdict() | {
            "subsets": subsets,
            "size": size,
        }
        if some > 5:
            found |= (
                metrics.precision_recall(real, fake)._asdict()
                | metrics.density_coverage(real, fake)._asdict()
            )
        found["rows"] = some
    probabilities = extracted.get("probabilities", count)
    if probabilities is not None:
        found["inception_score"] = metrics.inception_score(
            probabilities, min(SPLITS, count)
        )._asdict()
    return found


def distance(rows: np.ndarray, reference: frechet.Statistics) -> float:
    """The Fréchet distance of rows [N, D], which may lie in a file, to the reference."""
    return frechet.frechet_distance(frechet.of_rows(rows), reference)
