"""The solvers against their papers' formulas, written out in NumPy float64 the way the papers and
their codes have them.

Whole chains of 8 to 12 steps on the mixture, from the same start on the same grid.
"""

import jax
import numpy as np
import pytest
from chains import KEY, wavy

from diffusion_jax import samplers
from diffusion_jax.core import grids, noise, schedules
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.types import Level
from diffusion_jax.samplers import sample

WEIGHTS, MEANS, STDS = (
    np.array([0.3, 0.7]),
    np.array([[-0.9, 0.4], [0.6, -0.2]]),
    np.array([0.25, 0.2]),
)
MIXTURE = Mixture(WEIGHTS, MEANS, STDS)
X_INIT = np.random.default_rng(0).normal(size=(6, 2))
KEYS = jax.random.split(KEY, 6)
LEVELS = {
    "table": lambda: grids.uniform(schedules.linear(1000), 10),
    "cosine": lambda: grids.respaced(schedules.cosine(4000), "10"),
    "karras": lambda: grids.karras(schedules.edm(), 12),
    "flow": lambda: grids.uniform(schedules.rectified_flow(), 9),
}


def _clean(x, alpha, sigma):
    """E[x0 | x]."""
    variance = alpha**2 * STDS**2 + sigma**2
    offset = x[:, None] - alpha * MEANS
    joint = np.log(WEIGHTS / variance) - (offset**2).sum(-1) / (2 * variance)
    share = np.exp(joint - joint.max(1, keepdims=True))
    share = (share / share.sum(1, keepdims=True))[..., None]
    return (share * (MEANS + (alpha * STDS**2 / variance)[:, None] * offset)).sum(1)


def _noise(x, alpha, sigma):
    return (x - alpha * _clean(x, alpha, sigma)) / sigma


@pytest.fixture(params=LEVELS)
def grid(request, x64):
    return Level(*(np.asarray(a, float) for a in LEVELS[request.param]()))


def _check(sampler, grid, expected, x_init=None):
    x_init = np.hypot(grid.alpha[0], grid.sigma[0]) * X_INIT if x_init is None else x_init
    chain = jax.jit(lambda x: sample(sampler, MIXTURE.denoiser, KEYS, x, grid))
    np.testing.assert_allclose(chain(x_init), expected(x_init), rtol=1e-6, atol=1e-8)


def test_heun_is_edms_algorithm_1(grid):
    # Karras et al. 2022, alg. 1 with s(t) = 1, sigma(t) = t; other schedules by x / alpha. Line 4,
    # 6 and 7-8.
    def algorithm(x):
        t = grid.sigma / grid.alpha
        x = x / grid.alpha[0]
        for i in range(len(t) - 1):
            d = (x - _clean(x, 1.0, t[i])) / t[i]
            after = x + (t[i + 1] - t[i]) * d
            d_after = (after - _clean(after, 1.0, t[i + 1])) / t[i + 1]
            x = x + (t[i + 1] - t[i]) * (d / 2 + d_after / 2)
        return _clean(x, 1.0, t[-1])

    _check(samplers.heun(), grid, algorithm)
    _check(samplers.edm_churn(0.0), grid, algorithm)


def test_euler_is_the_public_programs_one(grid):
    # in sigma / alpha: x + (s - t) (x - D) / t
    def algorithm(x):
        t = grid.sigma / grid.alpha
        x = x / grid.alpha[0]
        for i in range(len(t) - 1):
            x = x + (t[i + 1] - t[i]) * (x - _clean(x, 1.0, t[i])) / t[i]
        return _clean(x, 1.0, t[-1])

    _check(samplers.euler(), grid, algorithm)


def test_heun_flow_is_heuns_method_for_the_velocity(x64):
    grid = Level(*(np.asarray(a, float) for a in LEVELS["flow"]()))

    def velocity(x, t):
        return _noise(x, 1 - t, t) - _clean(x, 1 - t, t)

    def algorithm(x):
        for t, s in zip(grid.t[:-1], grid.t[1:], strict=True):
            v = velocity(x, t)
            x = x + (s - t) / 2 * (v + velocity(x + (s - t) * v, s))
        return _clean(x, 1 - grid.t[-1], grid.t[-1])

    _check(samplers.heun_flow(), grid, algorithm)


def test_heun_flow_starts_at_alpha_0(x64):
    t = np.linspace(1.0, 0.125, 8)
    grid = Level(t, 1 - t, t)
    for sampler in (
        samplers.heun_flow(),
        samplers.dpmpp_2m(),
        samplers.dpmpp_3m(),
        samplers.unipc(),
        samplers.ancestral(),
    ):
        x = jax.jit(
            lambda x, sampler=sampler: sample(sampler, wavy, jax.random.split(KEY, 6), x, grid)
        )(X_INIT)
        assert np.all(np.isfinite(x))


def _half_logsnr(grid):
    return np.log(grid.alpha) - np.log(grid.sigma)


def test_dpmpp_2m_is_the_papers_algorithm_2(grid):
    # Lu et al. 2022b: D = (1 + 1 / 2r) x0_i - 1 / 2r x0_{i-1}, r = h_{i-1} / h_i; the first step is
    # of order 1
    def algorithm(x):
        lambdas, before = _half_logsnr(grid), None
        for i in range(len(lambdas) - 1):
            h = lambdas[i + 1] - lambdas[i]
            x0 = d = _clean(x, grid.alpha[i], grid.sigma[i])
            if before is not None:
                r = (lambdas[i] - lambdas[i - 1]) / h
                d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
            x = grid.sigma[i + 1] / grid.sigma[i] * x - grid.alpha[i + 1] * (np.exp(-h) - 1) * d
            before = x0
        return _clean(x, grid.alpha[-1], grid.sigma[-1])

    _check(samplers.dpmpp_2m(), grid, algorithm)


def test_dpmpp_3m_integrates_the_parabola_of_the_last_three_x0(grid):
    nodes, weights = np.polynomial.legendre.leggauss(30)

    def algorithm(x):
        lambdas, history = _half_logsnr(grid), []
        for i in range(len(lambdas) - 1):
            history = [(lambdas[i], _clean(x, grid.alpha[i], grid.sigma[i])), *history[:2]]
            low, high = lambdas[i], lambdas[i + 1]
            at = low + (high - low) * (nodes + 1) / 2
            points = np.array([point for point, _ in history])
            integral = 0.0
            for j, (_, x0) in enumerate(history):
                others = np.delete(points, j)
                basis = np.prod([(at - other) / (points[j] - other) for other in others], axis=0)
                integral = integral + (high - low) / 2 * np.sum(weights * np.exp(at) * basis) * x0
            # Lu et al. 2022b, eq. 9
            x = grid.sigma[i + 1] / grid.sigma[i] * x + grid.sigma[i + 1] * integral
        return _clean(x, grid.alpha[-1], grid.sigma[-1])

    _check(samplers.dpmpp_3m(), grid, algorithm)


def test_unipc_is_the_papers_linear_systems(grid):
    # Zhao et al. 2023, data prediction, B(h) = e^h - 1 with h -> -h: R a = b / B, of UniP-2 a =
    # 1/2, and of UniC-1 the general formula's a = b1 rather than the paper's special 1/2
    def phis(h):
        first = np.expm1(-h)
        second = first / -h - 1
        return first, second, second / -h - 0.5

    def algorithm(x):
        lambdas, outputs = _half_logsnr(grid), []
        alpha, sigma = grid.alpha, grid.sigma
        start = x
        for i in range(len(lambdas) - 1):
            outputs.append(_clean(x, alpha[i], sigma[i]))
            if i > 0:
                h = lambdas[i] - lambdas[i - 1]
                b_h = np.expm1(-h)
                _, second, third = phis(h)
                ratios, differences = [1.0], [outputs[i] - outputs[i - 1]]
                if i > 1:
                    r = (lambdas[i - 2] - lambdas[i - 1]) / h
                    ratios, differences = (
                        [r, 1.0],
                        [(outputs[i - 2] - outputs[i - 1]) / r, *differences],
                    )
                rows = np.array([np.power(ratios, k) for k in range(len(ratios))])
                a = np.linalg.solve(rows, np.array([second, 2 * third][: len(ratios)]) / b_h)
                residual = sum(
                    weight * difference for weight, difference in zip(a, differences, strict=True)
                )
                x = sigma[i] / sigma[i - 1] * start - alpha[i] * (
                    b_h * outputs[i - 1] + b_h * residual
                )
            h = lambdas[i + 1] - lambdas[i]
            b_h, start = np.expm1(-h), x
            x = sigma[i + 1] / sigma[i] * start - alpha[i + 1] * b_h * outputs[i]
            if i > 0:
                r = (lambdas[i - 1] - lambdas[i]) / h
                x = x - alpha[i + 1] * b_h * 0.5 * (outputs[i - 1] - outputs[i]) / r
        return _clean(x, alpha[-1], sigma[-1])

    _check(samplers.unipc(), grid, algorithm)


def test_dpm_solver_2_and_3_are_the_papers_algorithms(x64):
    # Lu et al. 2022a, algorithms 1 and 2, on a variance-preserving schedule with its own levels in
    # between
    schedule = schedules.vp()
    grid = Level(*(np.asarray(a, float) for a in grids.logsnr(schedule, 9)))
    root = lambda lam: (1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam)))
    lambdas = _half_logsnr(grid)

    def second(x):
        for low, high in zip(lambdas[:-1], lambdas[1:], strict=True):
            h = high - low
            (alpha, sigma), (mid_alpha, mid_sigma), (to_alpha, to_sigma) = (
                root(low),
                root(low + h / 2),
                root(high),
            )
            u = mid_alpha / alpha * x - mid_sigma * np.expm1(h / 2) * _noise(x, alpha, sigma)
            x = to_alpha / alpha * x - to_sigma * np.expm1(h) * _noise(u, mid_alpha, mid_sigma)
        return _clean(x, grid.alpha[-1], grid.sigma[-1])

    def third(x):
        r1, r2 = 1 / 3, 2 / 3
        for low, high in zip(lambdas[:-1], lambdas[1:], strict=True):
            h = high - low
            (alpha, sigma), (a1, s1), (a2, s2), (to_alpha, to_sigma) = map(
                root, (low, low + r1 * h, low + r2 * h, high)
            )
            eps = _noise(x, alpha, sigma)
            u1 = a1 / alpha * x - s1 * np.expm1(r1 * h) * eps
            d1 = _noise(u1, a1, s1) - eps
            u2 = (
                a2 / alpha * x
                - s2 * np.expm1(r2 * h) * eps
                - s2 * r2 / r1 * (np.expm1(r2 * h) / (r2 * h) - 1) * d1
            )
            d2 = _noise(u2, a2, s2) - eps
            x = (
                to_alpha / alpha * x
                - to_sigma * np.expm1(h) * eps
                - to_sigma / r2 * (np.expm1(h) / h - 1) * d2
            )
        return _clean(x, grid.alpha[-1], grid.sigma[-1])

    x_init = np.hypot(grid.alpha[0], grid.sigma[0]) * X_INIT
    for sampler in (samplers.dpm_solver_2(schedule), samplers.dpm_solver_2()):
        _check(sampler, grid, second, x_init)
    for sampler in (samplers.dpm_solver_3(schedule), samplers.dpm_solver_3()):
        _check(sampler, grid, third, x_init)


def _draws(monkeypatch, count):
    """The draws [count, 6, 2] that a chain takes in turn, one a step."""
    drawn = np.random.default_rng(1).normal(size=(count, 6, 2))
    monkeypatch.setattr(
        noise, "fold_in", lambda keys, number: number
    )  # a step's keys are its number
    monkeypatch.setattr(noise, "normal", lambda keys, shape: jax.numpy.asarray(drawn)[keys])
    return drawn


def test_edm_churn_is_edms_algorithm_2(monkeypatch, x64):
    grid = Level(*(np.asarray(a, float) for a in LEVELS["karras"]()))
    gamma, noise_scale, least, most = 0.3, 1.007, 0.05, 40.0
    drawn = _draws(monkeypatch, len(grid.t))

    def algorithm(x):
        t = grid.sigma
        for i in range(len(t) - 1):
            raised = t[i] * (1 + (gamma if least <= t[i] <= most else 0.0))
            x = x + np.sqrt(raised**2 - t[i] ** 2) * noise_scale * drawn[i]
            d = (x - _clean(x, 1.0, raised)) / raised
            after = x + (t[i + 1] - raised) * d
            d_after = (after - _clean(after, 1.0, t[i + 1])) / t[i + 1]
            x = x + (t[i + 1] - raised) * (d / 2 + d_after / 2)
        return _clean(x, 1.0, t[-1])

    for schedule in (None, schedules.edm()):
        _check(samplers.edm_churn(gamma, noise_scale, least, most, schedule), grid, algorithm)


def test_euler_maruyama_is_that_of_the_vp_sde(monkeypatch, x64):
    # Song et al. 2021b: f = -beta x / 2, g^2 = beta; integrals over the step and values at its
    # start agree for small steps
    schedule = schedules.vp()
    grid = Level(*(np.asarray(a, float) for a in grids.uniform(schedule, 2001)))
    grid = Level(*(a[1500:] for a in grid))
    drawn = _draws(monkeypatch, len(grid.t))
    x = X_INIT
    for i in range(500):
        dt = grid.t[i] - grid.t[i + 1]
        beta = 0.1 + (20 - 0.1) * grid.t[i]
        score = -_noise(x, grid.alpha[i], grid.sigma[i]) / grid.sigma[i]
        x = x + (beta / 2 * x + beta * score) * dt + np.sqrt(beta * dt) * drawn[i]
    expected = _clean(x, grid.alpha[-1], grid.sigma[-1])
    chain = jax.jit(lambda x: sample(samplers.euler_maruyama(), MIXTURE.denoiser, KEYS, x, grid))
    np.testing.assert_allclose(chain(X_INIT), expected, atol=5e-3)


def test_dpmpp_2m_sde_is_the_papers(monkeypatch, grid):
    # Lu et al. 2022b, section 5, eq. 18, with x0 continued as in 2M
    drawn = _draws(monkeypatch, len(grid.t))

    def algorithm(x):
        lambdas, before = _half_logsnr(grid), None
        for i in range(len(lambdas) - 1):
            h = lambdas[i + 1] - lambdas[i]
            x0 = _clean(x, grid.alpha[i], grid.sigma[i])
            x = (
                grid.sigma[i + 1] / grid.sigma[i] * np.exp(-h) * x
                + grid.alpha[i + 1] * (1 - np.exp(-2 * h)) * x0
            )
            if before is not None:
                r = (lambdas[i] - lambdas[i - 1]) / h
                x = x + 0.5 * grid.alpha[i + 1] * (1 - np.exp(-2 * h)) / r * (x0 - before)
            x = x + grid.sigma[i + 1] * np.sqrt(1 - np.exp(-2 * h)) * drawn[i]
            before = x0
        return _clean(x, grid.alpha[-1], grid.sigma[-1])

    _check(samplers.dpmpp_2m_sde(), grid, algorithm)


def test_langevin_keeps_a_gaussian_but_for_its_known_bias(x64):
    # x' = (1 - e / v) x + sqrt(2 e) z has the stationary variance v / (1 - e / 2v)
    alpha, sigma, std, count = 0.8, 0.6, 0.5, 20000
    level = Level(0.5, alpha, sigma)
    variance = alpha**2 * std**2 + sigma**2
    one = Mixture(np.ones(1), np.zeros((1, 1)), np.array([std]))
    x = np.sqrt(variance) * np.random.default_rng(0).normal(size=(count, 1))
    for sampler, share in (
        (samplers.annealed_langevin(0.8, 30), 0.4),
        (samplers.predictor_corrector(0.4, 30, samplers.annealed_langevin(1e-9, 1)), 0.32),
    ):
        step = jax.jit(
            lambda x, sampler=sampler: sampler.step(
                jax.random.split(KEY, count), one.denoiser, x, (), level, level
            )[0]
        )
        expected = variance / (1 - share * sigma**2 / (2 * variance))
        np.testing.assert_allclose(step(x).var(), expected, rtol=4 * np.sqrt(2 / count))
        assert expected > 1.08 * variance
