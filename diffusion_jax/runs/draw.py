"""How a run draws: its sampler, its grid, its guidance, and `make_generate`, which joins them to
the network on all devices."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import grids
from diffusion_jax import samplers
from diffusion_jax.runs.config import Config, choose
from diffusion_jax.denoisers import NetworkDenoiser, classifier_free, clip_x0, dynamic_threshold, make_denoiser
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import fold_in, initial_noise
from diffusion_jax.samplers.cached import cached
from diffusion_jax.devices.parallel import map_examples
from diffusion_jax.core.types import Denoiser, Level, PyTree, Sampler, Schedule


def model_variance(config: Config) -> str:
    """The variance of the reverse process that the model stands for."""
    fixed = choose(("fixed_small", "fixed_large"), config.diffusion.variance, "diffusion.variance")
    return "learned_range" if config.model.learned_variance else fixed


def make_sampler(config: Config, schedule: Schedule, grid: Level) -> Sampler:
    """The sampler; of the settings, the schedule and the grid's length it gets what its factory
    takes."""
    sampling = config.sampling
    factory = choose(samplers.SAMPLERS, sampling.sampler, "sampling.sampler")
    variance = model_variance(config) if sampling.variance == "model" else sampling.variance
    if variance == "learned_range" and not config.model.learned_variance:
        raise UserError("config.sampling.variance=learned_range, but this model has no learned variance")
    options = {
        "variance": variance,
        "eta": sampling.eta,
        "gamma": min(sampling.churn / len(grid.t), samplers.MAX_GAMMA),
        "snr": sampling.snr,
        "rtol": sampling.ode_tolerance,
        "atol": sampling.ode_tolerance,
        "schedule": schedule,
    }
    taken = inspect.signature(factory).parameters
    return factory(**{name: value for name, value in options.items() if name in taken})


def make_grid(config: Config, schedule: Schedule) -> Level:
    sampling = config.sampling
    factory = choose(grids.GRIDS, sampling.grid, "sampling.grid")
    if sampling.grid in ("respaced", "explicit"):
        grid = factory(schedule, sampling.steps)
    elif not sampling.steps.isdecimal():
        raise UserError(f"config.sampling.steps must be a number for the {sampling.grid} grid, not {sampling.steps!r}")
    else:
        options = {"rho": sampling.rho} if "rho" in inspect.signature(factory).parameters else {}
        grid = factory(schedule, int(sampling.steps), **options)
    return grids.quantized(schedule, grid) if sampling.quantize else grid


# The longest first step, a ratio of sigma / alpha, of samplers that err after a longer one: from
# there the digits are spoilt
LONGEST_STEP = {"heun": 6.0, "edm_churn": 6.0, "dpm_solver_2": 6.0, "dpm_solver_3": 6.0, "annealed_langevin": 2.8}


def advice(config: Config, grid: Level) -> str:
    """What would make better samples where the sampler and its grid don't go together; empty where
    they do."""
    ratio = np.asarray(grid.sigma, float)[:2] / np.maximum(np.asarray(grid.alpha, float)[:2], 1e-30)
    if len(ratio) < 2 or ratio[0] < LONGEST_STEP.get(config.sampling.sampler, np.inf) * ratio[1]:
        return ""
    return (
        f"note: {config.sampling.sampler} goes from sigma/alpha = {ratio[0]:.3g} to {ratio[1]:.3g} in its first step, "
        "which is too long for it; take more steps, --config.sampling.grid=logsnr or karras, or "
        "--config.sampling.sampler=heun_flow"
    )


def labels(config: Config, index: np.ndarray) -> np.ndarray:
    """The class of sample number index[j]: all in turn, or the one asked for."""
    label = config.sampling.label
    return index % config.data.num_classes if label < 0 else np.full_like(index, label)


def guidance_interval(config: Config) -> tuple[float, float] | None:
    """sampling.guidance_interval as two numbers, None where it is empty; UserError where it is
    neither."""
    text = config.sampling.guidance_interval
    try:
        interval = tuple(map(float, text.split(","))) if text else (0.0, math.inf)
    except ValueError:
        interval = ()
    if len(interval) != 2 or not 0.0 <= interval[0] < interval[1]:
        raise UserError(f"config.sampling.guidance_interval must be 0 <= low < high, as in 0.3,3, not {text!r}")
    return interval if text else None


def check_can_guide(config: Config) -> None:
    """Raises UserError where a run has nothing to be guided away from."""
    if not config.sampling.weak and not config.training.label_dropout:
        raise UserError(
            "config.sampling.guidance needs a run trained with training.label_dropout above 0, "
            "or a weaker one: config.sampling.weak=WORKDIR"
        )


def check_guidance(config: Config) -> None:
    """Raises UserError for settings of guidance that are out of range or that the run cannot
    follow."""
    sampling = config.sampling
    if not 0.0 <= sampling.guidance_rescale <= 1.0:
        raise UserError(f"config.sampling.guidance_rescale must lie in [0, 1], not {sampling.guidance_rescale}")
    guidance_interval(config)
    if sampling.guidance:
        check_can_guide(config)
    elif sampling.weak:
        raise UserError("config.sampling.weak guides by the weight config.sampling.guidance, which is 0")


def branches(
    config: Config, parts: Any, params: PyTree, label: Any = None, weak: PyTree = None
) -> tuple[NetworkDenoiser, NetworkDenoiser]:
    """(the run's denoiser for `label`, the one that guidance leads away from: of `weak`, else
    without the label)."""
    check_can_guide(config)
    if bool(config.sampling.weak) != (weak is not None):
        raise ValueError("config.sampling.weak goes with its parameters, from generate.weak_params: give both or neither")
    conditional = make_denoiser(parts.apply_fn, params, parts.parameterization, label)
    if weak is not None:
        return conditional, conditional._replace(params=weak)
    return conditional, conditional._replace(cond=jnp.full_like(label, config.data.num_classes))


def limited(config: Config, denoiser: Denoiser) -> Denoiser:
    """x0 kept to the data's range as the settings say."""
    if config.sampling.threshold:
        return dynamic_threshold(denoiser, config.sampling.threshold)
    return clip_x0(denoiser) if config.sampling.clip_x0 else denoiser


def combined(config: Config, conditional: Denoiser, other: Denoiser, w: Any) -> Denoiser:
    """The two branches' denoiser, guided and limited as the settings say."""
    guided = classifier_free(conditional, other, w, guidance_interval(config), config.sampling.guidance_rescale)
    return limited(config, guided)


def make_run_denoiser(
    config: Config, parts: Any, params: PyTree, label: Any = None, w: Any = None, weak: PyTree = None
) -> Denoiser:
    """The denoiser that a run draws with: its network's, guided and limited as config.sampling
    says. For within a jit.

    label: [B], or None where the run has no classes. w: guidance's weight, scalar or [B], may be
    traced; None for no guidance. weak: the parameters of sampling.weak, from
    `generate.weak_params`. UserError where the run cannot be guided. """
    if w is None:
        return limited(config, make_denoiser(parts.apply_fn, params, parts.parameterization, label))
    return combined(config, *branches(config, parts, params, label, weak), w)


def make_run_sampler(
    config: Config, parts: Any, params: PyTree, label: Any = None, w: Any = None, weak: PyTree = None
) -> Sampler:
    """The run's sampler; with guidance, one that evaluates the other branch every
    sampling.guidance_every steps.

    The arguments are those of `make_run_denoiser`, whose result is the denoiser of the last hop.
    """
    if w is None or config.sampling.guidance_every == 1:
        return parts.sampler
    conditional, other = branches(config, parts, params, label, weak)
    build = lambda stand_in: combined(config, conditional, stand_in, w)
    return cached(parts.sampler, other, build, config.sampling.guidance_every)


def make_generate(config: Config, parts: Any, trajectory: bool = False, weak: PyTree = None) -> Callable:
    """generate(params, index, seed=None, w=None) -> float images [n, H, W, C] in about [-1, 1], on
    all devices.

    Sample number i = index[j] depends on the seed, i, its label and its w alone. seed and w,
    scalars or one an example, are sampling.seed and sampling.guidance where not given; their values
    compile nothing anew, but w = 0 for all leaves guidance out. weak: the parameters of
    sampling.weak, from `generate.weak_params`. With trajectory: (images, `samplers.Path` with
    examples first). """
    sampling, shape = config.sampling, tuple(config.data.shape)

    def draw(all_params, examples):
        params, weak = all_params
        key = lambda seed, index: jax.random.fold_in(jax.random.key(seed), index)
        keys = jax.vmap(key)(examples["seed"], examples["index"])
        run = (config, parts, params, examples.get("label"), examples.get("w"), weak)
        denoiser, sampler = make_run_denoiser(*run), make_run_sampler(*run)
        x_init = initial_noise(fold_in(keys, 0), shape, jax.tree.map(lambda a: a[0], parts.grid))
        drawn: Any = samplers.sample(sampler, denoiser, fold_in(keys, 1), x_init, parts.grid, trajectory)
        return (drawn[0], jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), drawn[1])) if trajectory else drawn

    mapped = map_examples(draw)

    def generate(params, index, seed=None, w=None):
        index = np.asarray(index)
        every = lambda value, dtype: np.broadcast_to(np.asarray(value, dtype), index.shape)
        examples = {"index": index, "seed": every(sampling.seed if seed is None else seed, np.uint32)}
        weight = every(sampling.guidance if w is None else w, np.float32)
        if weight.any():
            examples["w"] = weight
        if config.data.num_classes:
            examples["label"] = labels(config, index)
        return mapped((params, weak), examples)

    return generate
