"""Ancestral sampling and DDIM: their variances, their marginals, and other implementations' steps
and chains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import SHAPE, gaussian, moments, wavy

from diffusion_jax.core import schedules
from diffusion_jax.core.grids import respaced, uniform
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.denoisers import clip_x0, make_denoiser
from diffusion_jax.samplers import ancestral, ddim, sample


@pytest.mark.parametrize(
    ("sampler", "std"),
    [
        (ancestral(), 0.0),
        (ancestral("fixed_large"), 1.0),
        (ddim(0.0), 0.0),
        (ddim(0.5), 0.0),
        (ddim(1.0), 0.0),
    ],
    ids=["fixed_small", "fixed_large", "eta=0", "eta=0.5", "eta=1"],
)
def test_the_marginals_are_exact_for_the_data_that_the_variance_is_right_for(
    injected, x64, sampler, std
):
    # Ho et al. 2020, section 3.2: fixed small for one point, fixed large for N(0, I); Song et al.
    # 2021, lemma 1
    mean = 0.4 * (1 - std)
    grid = respaced(schedules.cosine(100), "8")
    means, stds = moments(injected, sampler, grid, mean, std)
    np.testing.assert_allclose(means[:-1], grid.alpha * mean, atol=1e-9)
    np.testing.assert_allclose(
        stds[:-1], np.sqrt(grid.alpha**2 * std**2 + grid.sigma**2), rtol=1e-9
    )


def test_ddim_follows_the_probability_flow_at_order_one(x64, continuous):
    # Gaussian data: (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along the flow
    mean, std = 0.3, 0.5
    scale = lambda level: jnp.sqrt(level.alpha**2 * std**2 + level.sigma**2)
    first, last = continuous.level(continuous.t_max), continuous.level(continuous.t_min)
    x_init = np.array([[-2.0], [-0.5], [0.7], [1.8]])
    at_last = last.alpha * mean + scale(last) / scale(first) * (x_init - first.alpha * mean)
    expected = mean + last.alpha * std**2 / scale(last) ** 2 * (at_last - last.alpha * mean)
    errors = []
    for steps in (64, 128):
        grid = uniform(continuous, steps + 1)
        x0 = jax.jit(lambda x, grid=grid: sample(ddim(), gaussian(mean, std), None, x, grid))(
            x_init
        )
        errors.append(np.abs(x0 - expected).max())
    assert errors[-1] < 0.02
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), 1, atol=0.03)


def test_ddim_of_eta_one_is_ancestral(injected, x64):
    noise = np.random.default_rng(0).normal(size=(5, 3, *SHAPE))

    @jax.jit
    def both(x, grid):
        chains = (injected(sampler, noise) for sampler in (ddim(1.0), ancestral()))
        return [sample(chain, wavy, None, x, grid, trajectory=True)[1].x for chain in chains]

    t = np.linspace(0.9, 0.1, 6)
    for grid in (
        Level(t, np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)),  # variance preserving
        Level(t, np.ones(6), 20 * t),  # variance exploding
        Level(t, 1 - t, t),  # rectified flow
    ):
        np.testing.assert_allclose(*both(grid.sigma[0] * noise[0] + 1, grid), rtol=1e-9, atol=1e-9)


def test_ddim_without_eta_draws_no_noise(monkeypatch):
    monkeypatch.setattr("diffusion_jax.core.noise.normal", None)
    denoiser = lambda x, level: Prediction(2.0 * x, 3.0 * x)
    x, _ = ddim().step(None, denoiser, np.ones((1, 2)), (), Level(1, 0.6, 0.8), Level(0, 0.8, 0.6))
    np.testing.assert_allclose(x, np.full((1, 2), 0.8 * 2 + 0.6 * 3), rtol=1e-6)


def test_a_variance_of_no_name_is_an_error():
    with pytest.raises(ValueError, match="fixed_small, fixed_large.*'medium'"):
        ancestral("medium")


def _mean_and_variance(monkeypatch, step):
    """Of the Gaussian that one step, a function of nothing, draws from."""
    results = []
    for draw in (0.0, 1.0):
        monkeypatch.setattr(
            "diffusion_jax.core.noise.normal",
            lambda keys, shape, draw=draw: jnp.full((1, *shape), draw),
        )
        results.append(step())
    return results[0], (results[1] - results[0]) ** 2


def test_fixed_large_is_beta_fixed_small_beta_tilde_and_eta_scales_its_root(
    monkeypatch, reference, x64
):
    tables = {key.removeprefix("cosine_50/"): a for key, a in reference("schedules.npz").items()}
    schedule = schedules.cosine(50)
    levels = schedule.level(np.arange(49)), schedule.level(np.arange(1, 50))
    for sampler, expected in (
        (ancestral("fixed_large"), tables["betas"]),
        (ancestral("fixed_small"), tables["posterior_variance"]),
        (ddim(0.5), 0.25 * tables["posterior_variance"]),
    ):
        one = lambda s, t, sampler=sampler: sampler.step(None, wavy, jnp.ones((1, 1)), (), t, s)[0]
        _, found = _mean_and_variance(monkeypatch, lambda one=one: jax.vmap(one)(*levels))
        np.testing.assert_allclose(found.ravel(), expected[1:], rtol=1e-9)


@pytest.mark.parametrize("table", ["linear_1000", "cosine_100", "cosine_4000"])
@pytest.mark.parametrize(("prediction", "peer_name"), [("eps", "EPSILON"), ("x0", "START_X")])
def test_a_step_is_the_peers(monkeypatch, reference, x64, table, prediction, peer_name):
    peer = {key.removeprefix(f"{table}/"): a for key, a in reference("pointwise.npz").items()}
    kind, num_steps = table.split("_")
    schedule = schedules.SCHEDULES[kind](int(num_steps))
    inner = peer["t"] > 0  # from index 0 the library takes the last hop, which is no step

    t, s = schedule.level(peer["t"][inner]), schedule.level(peer["t"][inner] - 1)

    def steps(sampler):
        def one(x, output, t, s):
            denoiser = make_denoiser(
                lambda params, x, t, cond: output[None], None, PREDICTIONS[prediction]()
            )
            return sampler.step(None, clip_x0(denoiser), x[None], (), t, s)[0][0]

        return _mean_and_variance(monkeypatch, lambda: jax.vmap(one)(x, output, t, s))

    x, output = peer["x_t"][inner].astype(float), peer["model_output"][inner].astype(float)
    for variance in ("fixed_small", "fixed_large"):
        mean, found = steps(ancestral(variance))
        np.testing.assert_allclose(mean, peer[f"{peer_name}/p_mean_clipped"][inner], atol=5e-6)
        log_variance = peer[f"{variance.upper()}/p_log_variance"][inner]
        np.testing.assert_allclose(np.log(found[:, 0, 0, 0]), log_variance, rtol=1e-5)
    after, _ = steps(ddim())
    # the peer rounds 1 - alphas_cumprod to float32, 3e-8, before it takes the root that scales eps
    alpha, sigma, cleaner_sigma = (
        np.reshape(a, (-1, 1, 1, 1)) for a in (t.alpha, t.sigma, s.sigma)
    )
    eps = (x - alpha * peer[f"{peer_name}/p_pred_xstart_clipped"][inner]) / sigma
    tolerance = 5e-6 + 3e-8 / (2 * cleaner_sigma) * np.abs(eps)
    assert np.all(np.abs(after - peer[f"{peer_name}/ddim_eta0"][inner]) < tolerance)


CHAINS = ["cosine_200_ddim25", "linear_1000_50", "cosine_4000_10,20,30", "linear_100_100"]


def _peers_chain(reference, name):
    peer = {
        key.removeprefix(f"{name}/"): a
        for key, a in reference("chains.npz").items()
        if key.startswith(name)
    }
    kind, num_steps, spacing = name.split("_")
    network = lambda params, x, t, cond: 0.3 * x + 0.1 * jnp.cos(0.01 * t)[:, None, None, None]
    denoiser = clip_x0(make_denoiser(network, None, PREDICTIONS["eps"]()))
    return peer, denoiser, respaced(schedules.SCHEDULES[kind](int(num_steps)), spacing)


@pytest.mark.parametrize("name", CHAINS)
def test_ddim_chains_are_the_peers(reference, name):
    peer, denoiser, grid = _peers_chain(reference, name)
    x0 = jax.jit(lambda x: sample(ddim(), denoiser, None, x, grid))(peer["x_T"])
    np.testing.assert_allclose(x0, peer["ddim_sample"], atol=1e-3)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_chains_are_the_papers_algorithm(reference, injected, variance):
    # Ho et al. 2020, algorithm 2, in float64 on the peer's rewritten betas, indices and noise
    peer, denoiser, grid = _peers_chain(reference, "cosine_200_ddim25")
    betas, noise, x = peer["betas"], peer["ancestral_noise"], peer["x_T"].astype(float)
    alphas_cumprod = np.cumprod(1 - betas)
    for i in range(24, 0, -1):
        bar, prev = alphas_cumprod[i], alphas_cumprod[i - 1]
        eps = 0.3 * x + 0.1 * np.cos(0.01 * peer["timestep_map"][i])
        x0 = np.clip((x - np.sqrt(1 - bar) * eps) / np.sqrt(bar), -1, 1)
        mean = (np.sqrt(prev) * betas[i] * x0 + np.sqrt(1 - betas[i]) * (1 - prev) * x) / (1 - bar)
        var = betas[i] if variance == "fixed_large" else betas[i] * (1 - prev) / (1 - bar)
        x = mean + np.sqrt(var) * noise[24 - i]
    eps = 0.3 * x + 0.1 * np.cos(0.01 * peer["timestep_map"][0])
    expected = np.clip((x - np.sqrt(betas[0]) * eps) / np.sqrt(1 - betas[0]), -1, 1)
    sampler = injected(ancestral(variance), noise[:24])
    xs = jax.jit(lambda x: sample(sampler, denoiser, None, x, grid, trajectory=True)[1].x)(
        peer["x_T"]
    )
    np.testing.assert_allclose(xs[-2], x, atol=1e-4)
    np.testing.assert_allclose(xs[-1], expected, atol=1e-4)
