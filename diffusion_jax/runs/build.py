"""From a Config, whose strings end here, to the functions of a run."""

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from diffusion_jax.codecs import Codec
from diffusion_jax.conditioning import Conditioner, joined
from diffusion_jax.core import grids, schedules, timesteps
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.latents import Latents
from diffusion_jax.core.types import (
    Kinds,
    Level,
    Parameterization,
    PyTree,
    Sampler,
    Schedule,
    Shape,
    Timesteps,
    Variance,
)
from diffusion_jax.data import sources
from diffusion_jax.data.spec import Declared, Spec, spec_of
from diffusion_jax.modalities import Modality
from diffusion_jax.models.precision import Precisions, cast
from diffusion_jax.objectives import Objective, Perceptual, Problem
from diffusion_jax.runs.checks import (
    check_clippable,
    check_decodable,
    check_freeze,
    check_latents,
    check_together,
)
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.guides import Guide
from diffusion_jax.runs.latents import as_stored, check_kept, with_statistics
from diffusion_jax.runs.network import PERCEPTUAL, Network, as_key, beginning
from diffusion_jax.runs.nouns import OTHERS
from diffusion_jax.runs.registry import make, needs
from diffusion_jax.runs.settings import check, copy
from diffusion_jax.training.clipping import clip_by_global_norm
from diffusion_jax.training.optimizers import LearningRate, of_two, scheduled
from diffusion_jax.training.power_ema import exponent
from diffusion_jax.training.state import TrainState, init_state, split, warmed_up_ema, whole


class Parts(NamedTuple):
    """What a Config stands for."""

    modality: Modality
    problem: Problem
    objective: Objective
    apply_fn: Network
    precisions: Precisions  # of its layers
    init_params: Callable  # key -> params, trained and frozen ones
    freeze: str  # a regular expression of the frozen ones' names
    learning_rate: Callable  # step -> learning rate
    optimizer: optax.GradientTransformation
    ema: Callable  # step -> decay of the average
    exponents: tuple[float, ...]  # of the averages by powers of time
    sampler: Sampler
    grid: Level
    guide: Guide

    @property
    def codec(self) -> Codec:
        return self.problem.codec

    @property
    def conditioner(self) -> Conditioner:
        return self.problem.conditioner

    @property
    def schedule(self) -> Schedule:
        return self.problem.schedule

    @property
    def parameterization(self) -> Parameterization:
        return self.problem.parameterization

    @property
    def variance(self) -> Variance:
        """Of the reverse process that the model stands for."""
        return self.problem.variance

    def cast(self, params: PyTree) -> PyTree:
        """The parameters in the precisions that the network computes with, which changes no
        result: once for many calls."""
        return cast(params, self.precisions)

    def step_options(self) -> dict[str, Any]:
        """What the training step has to be told of the parameters, as keyword arguments."""
        constrain = getattr(self.apply_fn.module, "constrain", None)
        return {"cast": self.cast, "constrain": constrain, "exponents": self.exponents}

    def init_state(self, key: jax.Array) -> TrainState:
        """The state before the first step."""
        return jax.jit(lambda key: self.state_of(self.init_params(key), key))(key)

    def state_of(self, params: PyTree, key: jax.Array) -> TrainState:
        """The state before the first step, at given parameters."""
        trained, frozen = split(params, self.freeze)
        aux = self.objective.init(jax.random.fold_in(key, 1), params)
        return init_state(trained, self.optimizer, frozen, aux, len(self.exponents))


def build(config: Config) -> Parts:
    """All parts of a run. Raises UserError for settings that don't go together, before anything is
    computed."""
    check(config)
    check_together(config)
    try:
        return _build(config)
    except ValueError as error:  # the library's own checks
        raise UserError(str(error)) from None


def _build(config: Config) -> Parts:
    data, diffusion, training = config.data, config.diffusion, config.training
    modality = make(data.modality, {})
    nouns = data_nouns(config)
    codec = make(config.codec, nouns)
    conditioner = make_conditioner(config, nouns)
    schedule = make(diffusion.schedule, {})
    parameterization = make(diffusion.prediction, {Schedule: schedule})
    check_decodable(config, schedule)
    check_clippable(config, codec)
    distribution = make(diffusion.timesteps, {Schedule: schedule})
    shape = Shape(tuple(codec.shape))
    module = make(config.model, {Shape: shape, Kinds: conditioner.kinds})
    network, example = Network(module), jax.eval_shape(lambda: conditioner.example(1))
    begun = beginning(module, tuple(shape), *as_key(example))
    check_freeze(training.freeze, begun.params)
    variance = learned_or(begun.output, tuple(shape), diffusion.variance)
    weighting = make(diffusion.weighting, {})
    of = (schedule, parameterization, distribution, codec, conditioner)
    problem = Problem(*of, weighting, variance, modality.entry)
    nouns = {Problem: problem, Latents: getattr(module, "latents", None), Perceptual: PERCEPTUAL}
    check_latents(config, nouns[Latents])
    objective = make(diffusion.loss, nouns)
    rate, steps = training.learning_rate, training.num_steps
    learning_rate = scheduled(
        rate, steps, training.warmup_steps, training.decay, training.decay_after
    )
    optimizer = make(training.optimizer, {LearningRate: learning_rate})
    if training.clip_norm:
        optimizer = optax.chain(clip_by_global_norm(training.clip_norm), optimizer)
    optimizer = of_two(optimizer) if "critic" in begun.params else optimizer
    grid = make_grid(config, schedule)
    return Parts(
        modality=modality,
        problem=problem,
        objective=objective,
        apply_fn=network,
        precisions=begun.precisions,
        init_params=begun.init_params,
        freeze=training.freeze,
        learning_rate=learning_rate,
        optimizer=optimizer,
        ema=warmed_up_ema(training.ema_decay),
        exponents=tuple(map(exponent, training.post_hoc_ema)),
        sampler=make_sampler(config, schedule, grid, variance),
        grid=grid,
        guide=make(config.sampling.guide, {}),
    )


def declared(config: Config) -> Declared:
    """What the config says of its data."""
    given = config.data.source.values().get("range") or ()
    between = (float(given[0]), float(given[1])) if len(given) == 2 else None
    modality = make(config.data.modality, {})
    return Declared(tuple(config.data.shape), config.data.num_classes, between, str(modality.dtype))


def data_nouns(config: Config, source: Any = None) -> dict[Any, Any]:
    """What factories are given of the data. source: the run's, where it is at hand."""
    nouns: dict[Any, Any] = {Declared: declared(config)} | OTHERS
    if any(needs(one, Spec) for one in (config.codec, *config.conditioning)):
        source = raw_source(config, config.data.train_split) if source is None else source
        nouns[Spec] = Spec(
            tuple((name, (shape, str(dtype))) for name, (shape, dtype) in spec_of(source).items())
        )
    return nouns


def make_conditioner(config: Config, nouns: dict[Any, Any]) -> Conditioner:
    """All that the network is told."""
    return joined([make(one, nouns) for one in config.conditioning])


def load_source(config: Config, split: str) -> Any:
    """A split of the run's data, held against what the config declares of them; else UserError.

    Its examples have all that the run's conditioners read."""
    return prepared(config, raw_source(config, split))


def prepared(config: Config, source: Any) -> Any:
    """A source, such as of prompts, with all that the run's conditioners read."""
    try:
        conditioner = make_conditioner(config, data_nouns(config, source))
        return conditioner.prepare(source) if conditioner.prepare else source
    except ValueError as error:
        raise UserError(str(error)) from None


def raw_source(config: Config, split: str, lenient: bool = False) -> Any:
    """`load_source` without what conditioners add.

    lenient: files that cannot be read are left out, and nothing is checked.
    """
    component = config.data.source
    if lenient and "unreadable" in component.values():
        component = type(component)(
            component.entry, component.given | {"unreadable": "skip"}, component.registry
        )
    source = make(component, {Declared: declared(config)}, split)
    if not lenient:
        check_source(config, source, split)
    return source


def check_source(config: Config, source: Any, split: str) -> None:
    """Raises UserError where a source is not what the config declares."""
    values = config.data.source.values()
    called = values.get("name") or values.get("folder") or config.data.source.entry
    modality = make(config.data.modality, {})
    sources.check(source, declared(config), split, called, modality.entry)
    check_kept(config, source)


def ranged(config: Config) -> bool:
    """Whether the data may be floats whose range the config leaves open."""
    return config.data.source.values().get("range") == ()


def with_range(config: Config, workdir: pathlib.Path = pathlib.Path()) -> tuple[Config, Any]:
    """(the config, its training data); the config has what it leaves open: the range of floats and
    the statistics of latents, which are kept with the run, as one in the workdir has them."""
    config = as_stored(config, workdir)
    check(config)
    check_together(config)
    source = load_source(config, config.data.train_split)
    own = getattr(source, "range", None)
    if own is not None and ranged(config):
        config = copy(config)
        config.data.source.range = tuple(map(float, own))
    return with_statistics(config, source, make(config.codec, data_nouns(config, source))), source


def batch_spec(config: Config, parts: Parts, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `count` examples, without reading data where the config declares
    all."""
    data = config.data
    dtype = np.float32 if parts.codec.kept or declared(config).range else parts.modality.dtype
    shape = parts.codec.kept or tuple(data.shape)
    known = {parts.modality.entry: (shape, dtype), "label": ((), np.int32)}
    wanted = (parts.modality.entry, *parts.conditioner.reads)
    if missing := [name for name in wanted if name not in known]:
        first = [raw_source(config, data.train_split)[0]]
        found = spec_of(prepared(config, first))
        known |= {name: found[name] for name in missing}
    return {
        name: jax.ShapeDtypeStruct((count, *known[name][0]), np.dtype(known[name][1]))
        for name in dict.fromkeys(wanted)
    }


def learned_or(output: tuple[int, ...], shape: tuple[int, ...], fixed: Variance) -> Variance:
    """The variance that the network's output stands for; UserError where it is no output for x0."""
    if output == shape:
        return fixed
    if output == (*shape[:-1], 2 * shape[-1]):
        return "learned_range"
    raise UserError(f"the network returns {output} for examples of {shape}")


def make_grid(config: Config, schedule: Schedule, steps: str | None = None) -> Level:
    """The levels of config.sampling, or of another number of steps."""
    sampling = config.sampling
    steps, entry = sampling.steps if steps is None else steps, sampling.grid.entry
    if entry in ("respaced", "explicit"):
        grid = make(sampling.grid, {}, schedule, steps)
    elif not steps.isdecimal():
        raise UserError(
            f"config.sampling.steps must be a number for the {entry} grid, not {steps!r}"
        )
    else:
        grid = make(sampling.grid, {}, schedule, int(steps))
    return grids.quantized(schedule, grid) if sampling.quantize else grid


def make_sampler(config: Config, schedule: Schedule, grid: Level, variance: Variance) -> Sampler:
    """The sampler, which may be given the schedule, the grid and the model's variance."""
    component = config.sampling.sampler
    asked = component.given.get("variance")
    if asked == "learned_range" and variance != "learned_range":
        raise UserError(
            "config.sampling.sampler.variance=learned_range, but this model has no learned variance"
        )
    return make(component, {Schedule: schedule, Level: grid, Variance: variance})


def held_out_times(config: Config, parts: Parts) -> Timesteps:
    """The distribution of t of the held-out loss, the same for all runs of an objective: uniform,
    unless the distribution of t is part of the objective."""
    own = config.diffusion.timesteps.entry in timesteps.OBJECTIVES
    return parts.problem.timesteps if own else timesteps.uniform(parts.schedule)


def table_betas(config: Config) -> np.ndarray | None:
    """The betas of a table schedule, float64 [T]; None in continuous time."""
    component = config.diffusion.schedule
    betas = schedules.BETAS.get(component.entry)
    return None if betas is None else betas(**component.values())


def parameters(state: TrainState, ema: bool) -> PyTree:
    """All parameters of a state, averaged or raw, the frozen ones among them."""
    return whole(state.ema_params if ema else state.params, state.frozen)
