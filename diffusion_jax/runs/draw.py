"""How a run draws: its guidance, and `make_generate`, which joins sampler, grid and network on all
devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from diffusion_jax import samplers
from diffusion_jax.core import noise
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import fold_in, initial_noise
from diffusion_jax.core.types import Denoiser, Level, PyTree, Sampler
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
from diffusion_jax.runs.prompts import TEXT, Composed, Prompts, composed
from diffusion_jax.samplers.cached import cached

# The longest step, as a ratio of sigma / alpha, after which a sampler errs: from there the digits
# are spoilt.
LONGEST_STEP = {
    "heun": 6.0,
    "edm_churn": 6.0,
    "dpm_solver_2": 6.0,
    "dpm_solver_3": 6.0,
    "annealed_langevin": 2.8,
}


def advice(config: Config, grid: Level) -> str:
    """What would make better samples where the sampler and its grid don't go together; empty where
    they do."""
    sampler = config.sampling.sampler.entry
    alpha, sigma = (np.asarray(a, float) for a in (grid.alpha, grid.sigma))
    ratio = sigma / np.maximum(alpha, 1e-30)
    growth = ratio[:-1] / np.maximum(ratio[1:], 1e-30)
    if not len(growth) or growth.max() < LONGEST_STEP.get(sampler, np.inf):
        return ""
    i = int(growth.argmax())
    which = "first" if i == 0 else "last" if i == len(growth) - 1 else f"{i + 1}th"
    return (
        f"note: {sampler} goes from sigma/alpha = {ratio[i]:.3g} to {ratio[i + 1]:.3g} in its "
        f"{which} step, which is too long for it; take more steps, "
        "--config.sampling.grid=logsnr or karras, or --config.sampling.sampler=heun_flow"
    )


def classes(config: Config) -> int:
    """How many labels a sample can be asked for; 0 where the network is told none."""
    told = any(one.entry == "label" for one in config.conditioning)
    return config.data.num_classes if told else 0


def labels(config: Config, index: np.ndarray) -> np.ndarray:
    """The class of sample number index[j]: all in turn, or the one asked for."""
    label = config.sampling.label
    return index % config.data.num_classes if label < 0 else np.full_like(index, label)


def make_asked(config: Config, parts: Parts, prompts: Prompts | None = None) -> Callable:
    """asked(index [n]) -> the entries of a batch by which sample number index[j] is conditioned.

    Labels are as `labels` says, texts those of the prompts, where there are any. What else the
    network is told is that of the held-out example of the same number, round and round, and so is
    its label where none is asked for."""
    of_prompts = set(prompts.entries) if prompts else set()
    others = [name for name in parts.conditioner.reads if name not in {"label", *of_prompts}]
    source = load_source(config, config.data.eval_split) if others else None

    def asked(index: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = prompts.asked(index) if prompts else {}
        if source is not None:
            examples = pipeline.examples(source, index % len(source))
            found |= {name: examples[name] for name in others}
            if config.sampling.label < 0 and "label" in parts.conditioner.reads:
                found["label"] = examples["label"]
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
    steps.

    The arguments are those of `make_run_denoiser`, whose result is the denoiser of the last hop.
    """
    if w is None or parts.guide.every == 1:
        return parts.sampler
    conditional, other = branches(config, parts, params, cond, weak, more)
    w = strength(w, more)
    build = lambda stand_in: combined(config, parts, conditional, stand_in, w)
    between: Any = parts.guide.interval
    return cached(parts.sampler, other, build, parts.guide.every, between)


def told(parts: Parts, asked: dict) -> dict:
    """What the network is told of examples, within a jit. asked: entries of their batch."""
    return dict(parts.conditioner.train(None, asked)[1])


def make_generate(
    config: Config,
    parts: Parts,
    trajectory: bool = False,
    weak: PyTree = None,
    decoded: bool = False,
) -> Started:
    """generate(params, index, seed=None, w=None) -> x0 [n, *shape], on all devices; decoded: the
    data that they stand for, such as uint8 images [n, H, W, C], without trajectory.

    Sample number i = index[j] depends on the seed, i, its condition and its w alone. seed and w,
    scalars or one an example, are sampling.seed and sampling.guidance where not given; their values
    compile nothing anew, but w = 0 for all leaves guidance out. weak: the parameters of
    sampling.guide.weak, from `runs.open.weak_params`. With trajectory: (x0, `samplers.Path` with
    examples first).
    """
    if parts.objective.reconstruct:
        return make_reconstruct(config, parts, decoded)
    sampling, shape = config.sampling, tuple(parts.codec.shape)
    prompts = Prompts(config, parts) if sampling.prompts else None
    asked = make_asked(config, parts, prompts)

    def draw(all_params, examples):
        params, weak = (parts.cast(one) for one in all_params[:2])
        key = lambda seed, index: jax.random.fold_in(noise.key(seed), index)
        keys = jax.vmap(key)(examples["seed"], examples["index"])
        cond = told(parts, examples["asked"])
        more = composed(parts, examples["asked"], examples.get("beside"))
        run = (config, parts, params, cond, examples.get("w"), weak, more)
        denoiser, sampler = make_run_denoiser(*run), make_run_sampler(*run)
        first = jax.tree.map(lambda a: a[0], parts.grid)
        x_init = initial_noise(fold_in(keys, 0), shape, first)
        drawn: Any = samplers.sample(
            sampler, denoiser, fold_in(keys, 1), x_init, parts.grid, trajectory
        )
        if decoded:
            return parts.codec.decode(all_params[2], drawn)
        if not trajectory:
            return drawn
        return drawn[0], jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), drawn[1])

    mapped = map_examples(draw)
    # read at the first call, and an argument: a program would keep what it closes over
    decoder = functools.cache(lambda: place(parts.codec.params) if decoded else ())

    def start(params, index, seed=None, w=None):
        index = np.asarray(index)
        every = lambda value, dtype: np.broadcast_to(np.asarray(value, dtype), index.shape)
        numbers = every(sampling.seed if seed is None else seed, np.uint32)
        examples = {"index": index, "seed": numbers, "asked": asked(index)}
        weight = every(sampling.guidance if w is None else w, np.float32)
        beside = prompts.beside(index) if prompts else {}
        if weight.any() or beside:
            examples |= {"w": weight, "beside": beside}
        with precision(config.model.values().get("dtype")):
            return mapped.start((params, weak, decoder()), examples)

    return Started(start)


def make_reconstruct(config: Config, parts: Parts, decoded: bool) -> Started:
    """As `make_generate` of a run whose objective reconstructs: sample number i is held-out example
    number i, round and round, as the autoencoder gives it back."""
    reconstruct, codec, entry = parts.objective.reconstruct, parts.codec, parts.modality.entry
    assert reconstruct is not None
    source = load_source(config, config.data.eval_split)

    def of_batch(params, data):
        x0 = codec.encode(codec.params, None, data)
        found = reconstruct(parts.apply_fn, parts.cast(params), x0)
        return codec.decode(codec.params, found) if decoded else found

    mapped = map_examples(of_batch)

    def start(params, index, seed=None, w=None):
        examples = pipeline.examples(source, np.asarray(index) % len(source))
        with precision(config.model.values().get("dtype")):
            return mapped.start(params, examples[entry])

    return Started(start)


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
