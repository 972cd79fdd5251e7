"""How a run draws: its guidance, and `make_generate`, which joins sampler, grid and network on all
devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from diffusion_jax import samplers
from diffusion_jax.conditioning import guidance_weight, low_resolution, told_in_sampling
from diffusion_jax.core import noise
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import fold_in, initial_noise
from diffusion_jax.core.types import Denoiser, PyTree, Sampler
from diffusion_jax.data import pipeline, texts
from diffusion_jax.denoisers import (
    NetworkDenoiser,
    classifier_free,
    clip_x0,
    dynamic_threshold,
    make_denoiser,
)
from diffusion_jax.denoisers import combined as weighted_sum
from diffusion_jax.devices.parallel import Started, equal_batches, map_examples, place, precision
from diffusion_jax.runs.build import Parts, load_source, raw_source
from diffusion_jax.runs.checks import check_can_guide
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.half_size import check_whole, half_size
from diffusion_jax.runs.prompts import TEXT, Composed, Prompts, composed
from diffusion_jax.runs.reconstruct import make_reconstruct
from diffusion_jax.runs.reuse import reusing_sampler
from diffusion_jax.samplers.cached import cached


def classes(config: Config) -> int:
    """How many labels a sample can be asked for; 0 where the network is told none."""
    told = any(one.entry == "label" for one in config.conditioning)
    return config.data.num_classes if told else 0


def labels(config: Config, index: np.ndarray) -> np.ndarray:
    """The class of sample number index[j]: all in turn, or the one asked for."""
    label = config.sampling.label
    return index % config.data.num_classes if label < 0 else np.full_like(index, label)


# entry of a batch -> (index [n]) -> the rows [n, ...] of these samples
Given = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def make_asked(
    config: Config, parts: Parts, prompts: Prompts | None = None, given: Given | None = None
) -> Callable:
    """asked(index [n]) -> the entries of a batch by which sample number index[j] is conditioned.

    Labels are as `labels` says, texts those of the prompts, where there are any, and what is given
    is taken. What else the network is told is that of the held-out example of the same number,
    round and round, and so is its label where none is asked for; a low-resolution image that is
    not given is that example's own."""
    given = given or {}
    known = {"label", *given, *(prompts.entries if prompts else ())}
    if low_resolution.NAME in given:
        known.add(low_resolution.IMAGE)
    others = [name for name in parts.conditioner.reads if name not in known]
    source = load_source(config, config.data.eval_split) if others else None

    def asked(index: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {name: rows(index) for name, rows in given.items()}
        found |= prompts.asked(index) if prompts else {}
        if source is not None:
            examples = pipeline.examples(source, index % len(source))
            found |= {name: examples[name] for name in others}
            if config.sampling.label < 0 and "label" in parts.conditioner.reads:
                found.setdefault("label", examples["label"])
        if "label" in parts.conditioner.reads and "label" not in found:
            found["label"] = labels(config, index).astype(np.int32)
        return found

    return asked


def captions(config: Config, parts: Parts, count: int) -> list[str]:
    """The texts that samples 0 ... count - 1 are asked for; none where the network is told none."""
    if TEXT not in parts.conditioner.kinds or parts.conditioner.prepare is None:
        return []
    if asked := config.sampling.prompts:
        return [asked[i % len(asked)] for i in range(count)]
    source = raw_source(config, config.data.eval_split)
    return [texts.decode(source[i % len(source)][TEXT]) for i in range(count)]


def prompt_notes(config: Config, parts: Parts) -> list[str]:
    """What a user should know of the prompts, such as that one is cut."""
    return Prompts(config, parts).notes if config.sampling.prompts else []


def branches(
    config: Config,
    parts: Parts,
    params: PyTree,
    cond: Any = None,
    weak: PyTree = None,
    more: Composed | None = None,
) -> tuple[Denoiser, NetworkDenoiser]:
    """(the run's denoiser for `cond` and `more`, the one that guidance leads away from: of `weak`,
    else told nothing or the negative prompt)."""
    check_can_guide(config)
    if bool(parts.guide.weak) != (weak is not None):
        raise ValueError("sampling.guide.weak goes with its parameters: give both or neither")
    of = lambda params, cond: make_denoiser(parts.apply_fn, params, parts.parameterization, cond)
    conditional: Denoiser = of(params, cond)
    if weak is not None:
        if more is not None:
            raise UserError(
                "weighted texts and a negative prompt need config.sampling.guide=classifier_free"
            )
        return conditional, of(weak, cond)
    if more is not None and more.others:
        every = [conditional, *(of(params, other) for other in more.others)]
        conditional = weighted_sum(every, tuple(jnp.moveaxis(more.shares, 1, 0)))
    assert parts.conditioner.null is not None
    nothing = dict(parts.conditioner.null(cond))
    if more is not None and more.away is not None:
        nothing[TEXT] = more.away[TEXT]
    return conditional, of(params, nothing)


def limited(config: Config, parts: Parts, denoiser: Denoiser) -> Denoiser:
    """x0 kept to the codec's range as the settings say."""
    if parts.codec.range is None:
        return denoiser
    if config.sampling.threshold:
        return dynamic_threshold(denoiser, config.sampling.threshold)
    return clip_x0(denoiser, *parts.codec.range) if config.sampling.clip_x0 else denoiser


def combined(
    config: Config, parts: Parts, conditional: Denoiser, other: Denoiser, w: Any
) -> Denoiser:
    """The two branches' denoiser, guided and limited as the settings say."""
    between: Any = parts.guide.interval
    guided = classifier_free(conditional, other, w, between, parts.guide.rescale)
    return limited(config, parts, guided)


def make_run_denoiser(
    config: Config,
    parts: Parts,
    params: PyTree,
    cond: Any = None,
    w: Any = None,
    weak: PyTree = None,
    more: Composed | None = None,
) -> Denoiser:
    """The denoiser that a run draws with: its network's, guided and limited as config.sampling
    says.

    For within a jit. cond: what the network is told, of B examples. w: guidance's weight, scalar or
    [B], may be traced; None for no guidance. weak: the parameters of sampling.guide.weak, from
    `runs.open.weak_params`. more: further texts and a negative one, which need a w. UserError where
    the run cannot be guided.
    """
    if w is None:
        denoiser = make_denoiser(parts.apply_fn, params, parts.parameterization, cond)
        return limited(config, parts, denoiser)
    w = strength(w, more)
    return combined(config, parts, *branches(config, parts, params, cond, weak, more), w)


def strength(w: Any, more: Composed | None) -> Any:
    """Guidance's weight of the mean of all texts: eps = eps_u + (1 + w) sum_i w_i (eps_i - eps_u)
    (Liu et al. 2022, eq. 11)."""
    return w if more is None else (1.0 + w) * more.total - 1.0


def make_run_sampler(
    config: Config,
    parts: Parts,
    params: PyTree,
    cond: Any = None,
    w: Any = None,
    weak: PyTree = None,
    more: Composed | None = None,
) -> Sampler:
    """The run's sampler; with guidance, one that evaluates the other branch every guide.every
    steps, or one that computes deep features every sampling.cache_every steps.

    The arguments are those of `make_run_denoiser`, whose result is the denoiser of the last hop.
    """
    if config.sampling.cache_every > 1:
        of = lambda parts: make_run_denoiser(config, parts, params, cond, w, weak, more)
        return reusing_sampler(config, parts, of)
    if w is None or parts.guide.every == 1:
        return parts.sampler
    if parts.sampler.last is not None:
        raise UserError("flow_map evaluates both branches of guidance in every step: set "
                        "config.sampling.guide.every=1")  # fmt: skip
    conditional, other = branches(config, parts, params, cond, weak, more)
    w = strength(w, more)
    build = lambda stand_in: combined(config, parts, conditional, stand_in, w)
    between: Any = parts.guide.interval
    return cached(parts.sampler, other, build, parts.guide.every, between)


def told(parts: Parts, asked: dict, keys: Any = None) -> dict:
    """What the network is told of examples, within a jit. asked: entries of their batch. keys [B]:
    the samples', of what is told at random; None for nothing random."""
    return told_in_sampling(parts.conditioner, keys, asked)


def make_generate(
    config: Config,
    parts: Parts,
    trajectory: bool = False,
    weak: PyTree = None,
    decoded: bool = False,
    given: Given | None = None,
) -> Started:
    """generate(params, index, seed=None, w=None) -> x0 [n, *shape], on all devices; decoded: the
    data that they stand for, such as uint8 images [n, H, W, C], without trajectory.

    Sample number i = index[j] depends on the seed, i, its condition and its w alone. seed and w,
    scalars or one an example, are sampling.seed and sampling.guidance where not given; their values
    compile nothing anew, but w = 0 for all leaves guidance out. weak: the parameters of
    sampling.guide.weak, from `runs.open.weak_params`. With trajectory: (x0, `samplers.Path` with
    examples first). given: entries of the samples' batch, as `low`, in place of what `make_asked`
    would take.
    """
    if parts.objective.reconstruct:
        return make_reconstruct(config, parts, decoded)
    shape, asked_of = tuple(parts.codec.shape), make_examples(config, parts, given)
    if trajectory:
        check_whole(config, "a chain is shown")
    half = half_size(config, parts)

    def draw(all_params, examples):
        keys, denoiser, sampler = chain_of(config, parts, all_params[:2], examples)
        first = jax.tree.map(lambda a: a[0], parts.grid if half is None else half.grid)
        x_init = initial_noise(fold_in(keys, 0), shape if half is None else half.shape, first)
        chain = (sampler, denoiser, fold_in(keys, 1), x_init)
        if half is None:
            drawn: Any = samplers.sample(*chain, parts.grid, trajectory)
        else:
            drawn = samplers.sample_from_half(*chain, half.grid, parts.grid)
        if decoded:
            return parts.codec.decode(all_params[2], drawn)
        if not trajectory:
            return drawn
        return drawn[0], jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), drawn[1])

    mapped = map_examples(draw)
    # read at the first call, and an argument: a program would keep what it closes over
    decoder = functools.cache(lambda: place(parts.codec.params) if decoded else ())

    def start(params, index, seed=None, w=None):
        examples = asked_of(index, seed, w)
        with precision(config.model.values().get("dtype")):
            return mapped.start((params, weak, decoder()), examples)

    return Started(start)


def make_examples(config: Config, parts: Parts, given: Given | None = None) -> Callable:
    """examples(index [n], seed=None, w=None) -> what `chain_of` is given of samples of these
    numbers, arrays of NumPy [n, ...]; seed, w and given as in `make_generate`."""
    sampling = config.sampling
    prompts = Prompts(config, parts) if sampling.prompts else None
    asked = make_asked(config, parts, prompts, given)

    def examples(index, seed=None, w=None) -> dict[str, Any]:
        index = np.asarray(index)
        every = lambda value, dtype: np.broadcast_to(np.asarray(value, dtype), index.shape)
        numbers = every(sampling.seed if seed is None else seed, np.uint32)
        found = {"index": index, "seed": numbers, "asked": asked(index)}
        weight = every(sampling.guidance if w is None else w, np.float32)
        beside = prompts.beside(index) if prompts else {}
        if guidance_weight.NAME in parts.conditioner.kinds:
            if beside:
                raise UserError("a run that is told guidance's weight takes no weighted texts")
            found["asked"] |= {guidance_weight.NAME: weight}
        elif weight.any() or beside:
            found |= {"w": weight, "beside": beside}
        return found

    return examples


def chain_of(
    config: Config, parts: Parts, all_params: Any, examples: dict[str, Any]
) -> tuple[jax.Array, Denoiser, Sampler]:
    """(keys [n], of x_init as number 0 and of the chain as number 1, denoiser, sampler) of
    `make_examples`' examples, within a jit. all_params: (the network's, sampling.guide.weak's)."""
    params, weak = (parts.cast(one) for one in all_params)
    key = lambda seed, index: jax.random.fold_in(noise.key(seed), index)
    keys = jax.vmap(key)(examples["seed"], examples["index"])
    cond = told(parts, examples["asked"], keys)
    more = composed(parts, examples["asked"], examples.get("beside"), keys)
    run = (config, parts, params, cond, examples.get("w"), weak, more)
    return keys, make_run_denoiser(*run), make_run_sampler(*run)


def draw(
    generate: Started, params, num: int, batch_size: int, progress: bool = False
) -> np.ndarray:
    """Samples 0 ... num - 1, what `generate` returns of each; a last batch that is not full is
    filled up, so that shapes stay. A batch is read while the devices, of one process, draw the
    next one."""
    drawn, waiting = [], []
    with tqdm.tqdm(total=num, unit="image", disable=not progress) as bar:

        def read():
            finish, count = waiting.pop(0)
            drawn.append(finish()[:count])
            bar.update(count)

        for index, count in equal_batches(num, min(batch_size, num)):
            waiting.append((generate.start(params, index), count))
            if len(waiting) > 1:
                read()
        while waiting:
            read()
    return np.concatenate(drawn)
