"""A run whose network is one line, and its samples written out."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import mlp_config

from diffusion_jax import samplers
from diffusion_jax.core.types import Level
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use

INDEX = np.arange(3, 7)
PARAMS, WEAK = {"a": np.float32(0.9)}, {"a": np.float32(0.5)}


def run_of(calls=None, **sampling):
    """(config, parts) of a run trained with labels dropped, its network replaced by one line that
    notes its batches."""

    def apply_fn(params, x, t, cond=None, dropout_key=None):
        if calls is not None:
            calls.append(x.shape[0])
        wide = (slice(None), None, None, None)
        return params["a"] * jnp.sin(3 * x + 0.2 * cond["label"][wide] + 0.1 * t[wide])

    config = mlp_config()
    config.conditioning = use("label", dropout=0.1)
    config.diffusion.prediction = "v"
    for name, value in ({"sampler": "ddim"} | sampling).items():
        setattr(config.sampling, name, value)
    return config, build(config)._replace(apply_fn=apply_fn)


def expected(config, parts, denoiser, seed=0, sampler=None):
    """The samples number INDEX by a denoiser, written out."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(INDEX)
    first, second = (jax.vmap(jax.random.fold_in, (0, None))(keys, number) for number in (0, 1))
    noisiest = Level(*(a[0] for a in parts.grid))
    x_init = samplers.initial_noise(first, config.data.shape, noisiest)
    sampler = parts.sampler if sampler is None else sampler
    return samplers.sample(sampler, denoiser, second, x_init, parts.grid)


def two(parts):
    """The denoisers with the labels of the samples number INDEX, and with none, which is the
    eleventh."""
    told = {"label": INDEX.astype(np.int32)}
    conditional = make_denoiser(parts.apply_fn, PARAMS, parts.parameterization, told)
    return conditional, conditional._replace(cond={"label": np.full(4, 10, np.int32)})
