"""Samplers against what k-diffusion and diffusers sample from the same start by the same noise, in
float64: tests/reference/samplers.npz, of benchmarks/record_samplers.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import samplers
from diffusion_jax.core import noise
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.types import Level

MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))
PATHS = {  # alpha of a level of sigma / alpha = u
    "variance-preserving": lambda u: 1.0 / np.sqrt(1.0 + u**2),
    "variance-exploding": np.ones_like,
    "rectified flow": lambda u: 1.0 / (1.0 + u),
}
NAMES = [
    "euler_ancestral(eta=1.0)",
    "euler_ancestral(eta=0.5)",
    "euler_churn(gamma=0.2, least=0.1, most=20.0)",
    "dpm2()",
    "dpm2_ancestral(eta=1.0)",
    "dpm2_ancestral(eta=0.6)",
    "dpmpp_2s_ancestral(eta=1.0)",
    "dpmpp_2s_ancestral(eta=0.6)",
    "dpmpp_sde(eta=1.0)",
    "dpmpp_sde(eta=0.6, r=0.4)",
    "dpmpp_2m_sde(eta=1.0)",
    "dpmpp_2m_sde(variant='heun', eta=1.0)",
    "dpmpp_2m_sde(variant='heun', eta=0.6)",
    "lms(order=4)",
    "lms(order=2)",
    "deis(order=3)",
    "deis(order=2)",
    "unipc(bh='bh1')",
    "unipc(bh='bh2')",
    "pndm()",
]
# UniPC-1's corrector is special in diffusers, general here: of a first step of 1e-4 they differ by
# its cube
TOLERANCE = {name: 1e-7 if name.startswith("unipc") else 1e-10 for name in NAMES}


def test_every_chain_that_is_recorded_is_compared(reference):
    peer = reference("samplers.npz")
    chains = {name for name in peer if peer[name].shape == (6, 2)} - {"x"}
    assert chains == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_is_the_peers_on_every_kind_of_schedule(reference, monkeypatch, x64, name):
    peer = reference("samplers.npz")
    drawn = jnp.asarray(peer["draws"])
    u = peer.get(f"{name}/sigmas", peer["sigmas"])

    def fold_in(keys, number):  # the step's number, then that of its draw
        keys = jnp.asarray(keys)
        return keys.at[1].set(number) if keys.ndim else jnp.array([number, 0])

    def chain(x, grid):
        sampler = eval(name, vars(samplers))
        state, keys = sampler.init(x, Level(*(a[0] for a in grid))), jnp.int32(0)

        def body(carry, i):
            t, s = (Level(*(a[j] for a in grid)) for j in (i, i + 1))
            return sampler.step(fold_in(keys, i), MIXTURE.denoiser, *carry, t, s), None

        return jax.lax.scan(body, (x, state), jnp.arange(len(u) - 1))[0][0]

    monkeypatch.setattr(noise, "fold_in", fold_in)
    monkeypatch.setattr(noise, "normal", lambda keys, shape: drawn[keys[0], keys[1]])
    chain = jax.jit(chain)
    kept = 1.0 / np.sqrt(1.0 + u**2) if f"{name}/sigmas" in peer else np.ones_like(u)
    start, expected = peer["x"] * u[0] * kept[0], peer[name]
    for path, alpha in PATHS.items():
        grid = Level(np.arange(len(u), 0.0, -1.0), alpha(u), alpha(u) * u)
        x = chain(start / kept[0] * grid.alpha[0], grid)
        found = x / grid.alpha[-1] * kept[-1]
        scale = TOLERANCE[name]
        np.testing.assert_allclose(found, expected, rtol=scale, atol=scale, err_msg=path)
