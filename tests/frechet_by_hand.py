"""The Fréchet distance by its definition, by SciPy."""

import numpy as np
import scipy.linalg


def gaussians(a, b):
    """The Fréchet distance of two sets of features by its definition, with symmetric square
    roots."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = scipy.linalg.eigh(covariances[0])
    half = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    shared = np.sqrt(np.maximum(scipy.linalg.eigvalsh(half @ covariances[1] @ half), 0.0)).sum()
    return (
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + np.trace(covariances[0] + covariances[1])
        - 2 * shared
    )


def flat(images):
    return images.reshape(len(images), -1) / 255.0
