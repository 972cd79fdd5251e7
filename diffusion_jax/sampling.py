"""How a run draws: its sampler, its grid, and `make_generate`, which joins them to the network on all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import grids, samplers
from diffusion_jax.config import Config, choose
from diffusion_jax.denoisers import clip_x0, make_denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.noise import example_keys, initial_noise
from diffusion_jax.training.parallel import map_examples
from diffusion_jax.types import Level, Sampler, Schedule


def model_variance(config: Config) -> str:
    """The variance of the reverse process that the model stands for."""
    fixed = choose(("fixed_small", "fixed_large"), config.diffusion.variance, "diffusion.variance")
    return "learned_range" if config.model.learned_variance else fixed


def make_sampler(config: Config) -> Sampler:
    sampling = config.sampling
    factory = choose(samplers.SAMPLERS, sampling.sampler, "sampling.sampler")
    variance = model_variance(config) if sampling.variance == "model" else sampling.variance
    if variance == "learned_range" and not config.model.learned_variance:
        raise UserError("config.sampling.variance=learned_range, but this model has no learned variance")
    options = {"ancestral": {"variance": variance}, "ddim": {"eta": sampling.eta}}
    return factory(**options.get(sampling.sampler, {}))


def make_grid(config: Config, schedule: Schedule) -> Level:
    sampling = config.sampling
    grid = choose(grids.GRIDS, sampling.grid, "sampling.grid")
    if sampling.grid in ("respaced", "indices"):
        return grid(schedule, sampling.steps)
    if not sampling.steps.isdigit():
        raise UserError(f"config.sampling.steps must be a number for the {sampling.grid} grid, not {sampling.steps!r}")
    return grid(schedule, int(sampling.steps))


def labels(config: Config, index: np.ndarray) -> np.ndarray:
    """The class of sample number index[j]: all in turn, or the one asked for."""
    label = config.sampling.label
    return index % config.data.num_classes if label < 0 else np.full_like(index, label)


def make_generate(config: Config, parts: Any, trajectory: bool = False) -> Callable:
    """generate(params, index) -> float images [n, H, W, C] in about [-1, 1], on all devices; sample number i = index[j]
    depends on sampling.seed and i alone. With trajectory: (images, xs [n, levels + 1, H, W, C])."""
    sampling, shape = config.sampling, tuple(config.data.shape)
    key = jax.random.key(sampling.seed)

    def draw(params, index, cond=None):
        keys = example_keys(key, index)
        part = lambda number: jax.vmap(lambda k: jax.random.fold_in(k, number))(keys)
        denoiser = make_denoiser(parts.apply_fn, params, parts.parameterization, cond)
        if sampling.clip_x0:
            denoiser = clip_x0(denoiser)
        x_init = initial_noise(part(0), shape, jax.tree.map(lambda a: a[0], parts.grid))
        drawn = samplers.sample(parts.sampler, denoiser, part(1), x_init, parts.grid, trajectory)
        return (drawn[0], jnp.moveaxis(drawn[1], 0, 1)) if trajectory else drawn

    mapped = map_examples(draw)

    def generate(params, index):
        index = np.asarray(index)
        if not config.data.num_classes:
            return mapped(params, index)
        return mapped(params, index, labels(config, index))

    return generate
