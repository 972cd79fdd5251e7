"""Scores of features of several kinds."""

import numpy as np
import pytest
from frechet_by_hand import gaussians

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import frechet, metrics, references
from diffusion_jax.evaluation.extract import Extracted
from diffusion_jax.evaluation.scores import scores


def test_scores_of_several_kinds_of_features(tmp_path):
    """Spatial features and probabilities lie beside the others in one file."""
    rng = np.random.default_rng(1)
    feature, spatial, p = (
        rng.normal(size=(60, 5)),
        rng.normal(size=(60, 7)),
        rng.dirichlet(np.ones(4), 60),
    )
    place = Extracted(tmp_path, {}, (2, 2, 1))
    for part in (slice(0, 25), slice(25, 60)):
        found = {"probabilities": p[part], "features": feature[part], "spatial": spatial[part]}
        place.append(np.zeros((35, 2, 2, 1), np.uint8)[: len(p[part])], found)
    other, other_spatial = rng.normal(1.0, 1.0, (80, 5)), rng.normal(2.0, 1.0, (80, 7))
    fit = lambda rows: frechet.statistics([rows])
    reference = references.Reference(fit(other), fit(other_spatial), other.astype(np.float32))
    found = scores(place, 60, reference, replicates=0)
    np.testing.assert_allclose(found["fid"]["value"], gaussians(feature, other), rtol=1e-5)
    np.testing.assert_allclose(found["spatial_fid"], gaussians(spatial, other_spatial), rtol=1e-5)
    np.testing.assert_allclose(
        found["inception_score"]["mean"], metrics.inception_score(p, 10).mean, rtol=1e-5
    )
    assert found["kid"]["mean"] > 0.0 and "fid_infinity" not in found
    with pytest.raises(UserError, match="3 features an image, the samples have 5"):
        scores(place, 60, references.Reference(fit(other[:, :3]), None, None))
