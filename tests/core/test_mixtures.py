import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.types import CLEAN, Level

MIXTURE = Mixture(
    np.array([0.2, 0.5, 0.3]),
    np.array([[-1.0, 0.3], [0.5, 0.5], [0.2, -0.8]]),
    np.array([0.3, 0.1, 0.2]),
)
X = np.random.default_rng(0).normal(size=(7, 2))


def _density(x, alpha, sigma):
    return sum(
        w
        * scipy.stats.multivariate_normal(alpha * m, (alpha**2 * s**2 + sigma**2) * np.eye(2)).pdf(
            x
        )
        for w, m, s in zip(*MIXTURE, strict=True)
    )


@pytest.mark.parametrize("level", [CLEAN, Level(0.5, 0.8, 0.6), Level(1.0, 1.0, 30.0)])
def test_the_density_is_the_sum_of_scipys(x64, level):
    np.testing.assert_allclose(
        MIXTURE.log_prob(X, level), np.log(_density(X, level.alpha, level.sigma)), rtol=1e-9
    )


def test_the_denoiser_is_the_score_by_tweedies_formula(x64):
    # E[x0 | x] = (x + sigma^2 grad log q(x)) / alpha, with one level an example
    alpha, sigma = np.linspace(0.95, 0.1, 7), np.linspace(0.05, 0.99, 7)
    level = Level(np.zeros(7), alpha, sigma)
    prediction, h = MIXTURE.denoiser(X, level), 1e-6
    for i in range(7):
        density = lambda x, i=i: np.log(_density(x, alpha[i], sigma[i]))
        score = [(density(X[i] + h * e) - density(X[i] - h * e)) / (2 * h) for e in np.eye(2)]
        np.testing.assert_allclose(
            prediction.x0[i],
            (X[i] + sigma[i] ** 2 * np.array(score)) / alpha[i],
            rtol=1e-5,
            atol=1e-7,
        )
    column = lambda a: a[:, None]
    np.testing.assert_allclose(
        column(alpha) * prediction.x0 + column(sigma) * prediction.eps, X, rtol=1e-9, atol=1e-12
    )


def test_eps_keeps_its_digits_where_there_is_little_noise():
    x = jnp.float32(MIXTURE.means[:1] + 0.05)
    level = Level(0.0, 1.0, 1e-5)
    expected = (
        1e-5 / (0.3**2 + 1e-10) * 0.05
    )  # sigma / variance times the offset from the only near mean
    np.testing.assert_allclose(MIXTURE.denoiser(x, level).eps, np.full((1, 2), expected), rtol=1e-4)


def test_samples_have_the_mixtures_moments():
    x = np.asarray(jax.jit(MIXTURE.sample)(jax.random.split(jax.random.key(0), 20000)))
    mean = MIXTURE.weights @ MIXTURE.means
    second = sum(w * (np.outer(m, m) + s**2 * np.eye(2)) for w, m, s in zip(*MIXTURE, strict=True))
    np.testing.assert_allclose(x.mean(0), mean, atol=4 * x.std() / np.sqrt(len(x)))
    np.testing.assert_allclose(x.T @ x / len(x), second, atol=4 / np.sqrt(len(x)))
