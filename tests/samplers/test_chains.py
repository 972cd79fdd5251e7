"""Whole respaced chains of another implementation, ancestral with a learned range and DDIM, with
its own noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import samplers
from diffusion_jax.core import schedules
from diffusion_jax.core.grids import respaced
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.process import logsnr_drop
from diffusion_jax.core.types import CLEAN, Level, Sampler
from diffusion_jax.denoisers import clip_x0, make_denoiser

CHAINS = ["cosine_200_ddim25", "linear_1000_50", "cosine_4000_10,20,30", "linear_100_100"]


class Chain:
    def __init__(self, everything, name):
        self.peer = {
            key.removeprefix(f"{name}/"): a
            for key, a in everything.items()
            if key.startswith(f"{name}/")
        }
        kind, num_steps, spacing = name.split("_")
        self.grid = respaced(schedules.SCHEDULES[kind](int(num_steps)), spacing)

    def run(self, sampler, clipped=True, trajectory=False):
        denoiser = make_denoiser(_network, None, PREDICTIONS["eps"]())
        denoiser = clip_x0(denoiser) if clipped else denoiser
        run = lambda x: samplers.sample(sampler, denoiser, None, x, self.grid, trajectory)
        return jax.jit(run)(self.peer["x_T"])


def _network(params, x, t, cond):
    """The analytic network of the records; t is the original index."""
    return jnp.concatenate(
        [0.3 * x + 0.1 * jnp.cos(0.01 * t)[:, None, None, None], 0.5 * jnp.tanh(x)], axis=-1
    )


@pytest.fixture(params=CHAINS)
def chain(request, reference):
    return Chain(reference("chains.npz"), request.param)


def _with_noise(monkeypatch, sampler, noise):
    """The sampler whose step i draws noise[i], whatever its keys."""

    def step(keys, denoiser, x, state, t, s):
        i, state = state
        monkeypatch.setattr(
            "diffusion_jax.core.noise.normal", lambda keys, shape: jnp.asarray(noise)[i]
        )
        x, state = sampler.step(keys, denoiser, x, state, t, s)
        return x, (i + 1, state)

    return Sampler(lambda x, level: (0, sampler.init(x, level)), step)


def _algorithm(peer, fraction):
    """Ho et al. 2020's algorithm 2 with Nichol & Dhariwal 2021's eq. 15, in float64, on the
    rewritten betas."""
    betas, x = peer["betas"], np.float64(peer["x_T"])
    alphas_cumprod = np.cumprod(1 - betas)

    def clean(x, i):
        eps = 0.3 * x + 0.1 * np.cos(0.01 * peer["timestep_map"][i])
        return np.clip(
            (x - np.sqrt(1 - alphas_cumprod[i]) * eps) / np.sqrt(alphas_cumprod[i]), -1, 1
        )

    for i, noise in zip(range(len(betas) - 1, 0, -1), peer["ancestral_noise"], strict=False):
        bar, prev = alphas_cumprod[i], alphas_cumprod[i - 1]
        mean = (np.sqrt(prev) * betas[i] * clean(x, i) + np.sqrt(1 - betas[i]) * (1 - prev) * x) / (
            1 - bar
        )
        small = betas[i] * (1 - prev) / (1 - bar)
        log_variance = fraction(x) * np.log(betas[i]) + (1 - fraction(x)) * np.log(small)
        x = mean + np.exp(0.5 * log_variance) * noise
    return clean(x, 0)  # the last noise is multiplied by 0


def test_learned_range_chains_are_the_peers(monkeypatch, chain):
    noise = chain.peer["ancestral_noise"]
    found = chain.run(_with_noise(monkeypatch, samplers.ancestral("learned_range"), noise))
    np.testing.assert_allclose(found, chain.peer["ancestral_sample"], atol=1e-3)
    # the peer's last hop draws noise and multiplies it by 0: what we do not draw is not missing
    assert len(noise) == len(chain.grid.t)


def test_the_record_is_the_papers_algorithm(chain):
    # so that a disagreement with it is ours
    expected = _algorithm(chain.peer, lambda x: (0.5 * np.tanh(x) + 1) / 2)
    np.testing.assert_allclose(chain.peer["ancestral_sample"], expected, atol=1e-3)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_fixed_variances_are_the_papers_algorithm(monkeypatch, reference, variance):
    chain = Chain(reference("chains.npz"), "cosine_4000_10,20,30")
    expected = _algorithm(chain.peer, lambda x: float(variance == "fixed_large"))
    found = chain.run(
        _with_noise(monkeypatch, samplers.ancestral(variance), chain.peer["ancestral_noise"])
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_learned_range_is_not_a_fixed_variance(chain):
    # else the tests above could not tell them apart
    expected = _algorithm(chain.peer, lambda x: (0.5 * np.tanh(x) + 1) / 2)
    for fixed in (0.0, 1.0):
        assert (
            np.max(np.abs(_algorithm(chain.peer, lambda x, fixed=fixed: fixed) - expected)) > 0.01
        )


def test_ddim_chains_with_a_variance_head_are_the_peers(chain):
    np.testing.assert_allclose(chain.run(samplers.ddim()), chain.peer["ddim_sample"], atol=1e-3)


def test_respaced_betas_are_the_noise_of_the_grids_hops(x64, chain):
    # sigma_t^2 c of each hop, the last one to clean data included
    t = Level(*(np.asarray(a, float) for a in chain.grid))
    s = Level(*(np.append(a[1:], clean) for a, clean in zip(t, CLEAN, strict=True)))
    found = t.sigma**2 * -jnp.expm1(logsnr_drop(s, t))
    np.testing.assert_array_equal(chain.grid.t[::-1], chain.peer["timestep_map"])
    np.testing.assert_allclose(found[::-1], chain.peer["betas"], rtol=1e-9)
