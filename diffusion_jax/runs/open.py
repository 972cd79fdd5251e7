"""A trained run from its workdir: its config, its parameters, and how it draws."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.errors import UserError
from diffusion_jax.devices.parallel import place
from diffusion_jax.interop.files import fingerprint
from diffusion_jax.runs.advice import advice
from diffusion_jax.runs.build import Parts, build, make_grid, make_sampler, parameters
from diffusion_jax.runs.checks import check_attention
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.latents import as_stored
from diffusion_jax.runs.settings import copy, differences, load, other_network
from diffusion_jax.runs.workdir import workdir_path
from diffusion_jax.samplers import draws_noise, num_steps_for
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.snapshots import reconstruct
from diffusion_jax.training.state import whole

PILOT = 20  # samples by which the number of steps is chosen


class TrainedRun(NamedTuple):
    """What samples are drawn from."""

    parts: Parts
    params: Any
    step: int
    weak: Any  # the parameters of sampling.guide.weak


def check_same(config: Config, workdir: pathlib.Path, only: str) -> None:
    """Raises UserError, which says what the command takes `only`, where a config is not the run's.

    What training took from the data, a range or latents' statistics, becomes that of the run where
    the config leaves it open."""
    stored, own = load(workdir / "config.json"), as_stored(config, workdir)
    config.codec, config.training.init_sha256 = own.codec, own.training.init_sha256
    mine, theirs = (one.data.source for one in (config, stored))
    if mine.entry == theirs.entry and theirs.values().get("range") and not mine.range:
        mine.range = theirs.range
    changed = differences(stored, config)
    if changed:
        raise UserError(f"{only}, not {'; '.join(changed)}")


def restore_params(
    config: Config, parts: Parts, workdir: pathlib.Path, ema: bool
) -> tuple[Any, int]:
    """(averaged or raw parameters, their step) from the newest checkpoint, or the average of
    sampling.ema_length from its snapshots until then."""
    checkpoints = Checkpoints(workdir, read_only=True)
    state, _ = checkpoints.restore(jax.eval_shape(parts.init_state, jax.random.key(0)))
    checkpoints.close()
    params, step = parameters(state, ema), int(state.step)
    if ema and config.sampling.ema_length:
        average, step = reconstruct(workdir / "averages", config.sampling.ema_length, step)
        params = whole(average, state.frozen)
    return place(params), step


def params_of(
    config: Config, parts: Parts, named: str, field: str, same: bool = True
) -> tuple[Any, list[str]]:
    """(the averaged parameters of another run, whose workdir the field names; what differs).

    It may lack parameters of vectors that it is not told, which `filled` gives it. UserError, which
    says the field and what differs, where its parameters have other shapes or, with `same`, where
    it is a run of another network or of another schedule or prediction.
    """
    workdir = workdir_path(named, f"config.{field}")
    if not (workdir / "config.json").is_file():
        raise UserError(f"config.{field} must be the workdir of a run, but {workdir} holds none")
    other = load(workdir / "config.json")
    built, changed = build(other), other_network(other, config)
    theirs, ours, more = shapes(built), shapes(parts), vectors_beside(parts, built)
    misshaped = [
        f"{name}: {theirs.get(name, 'not there')} -> {ours.get(name, 'not there')}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
        and not (name not in theirs and more & set(name.split("/")))
    ]
    if more and parts.conditioner.kinds.items() - built.conditioner.kinds.items() == {
        (name, parts.conditioner.kinds[name]) for name in more
    }:
        changed = [line for line in changed if not line.startswith("conditioning: ")]
    if misshaped or (same and changed):
        said = changed or misshaped
        shown = "; ".join(said[:4]) + (f" and {len(said) - 4} more" * (len(said) > 4))
        raise UserError(f"config.{field}={workdir} is a run of another network ({shown})")
    return restore_params(other, built, workdir, ema=True)[0], changed


def vectors_beside(parts: Parts, other: Parts) -> set[str]:
    """The conditions of a run that enter its network as vectors and that another is not told; none
    of a network that keeps magnitudes, where a vector of zeros changes the others' shares."""
    if hasattr(parts.apply_fn.module, "constrain"):
        return set()
    kinds = parts.conditioner.kinds
    return {n for n in kinds.keys() - other.conditioner.kinds.keys() if kinds[n].how == "vector"}


def filled(params: Any, parts: Parts) -> Any:
    """Parameters of `params_of`, with zeros for those that they lack, so that a vector which the
    other network does not know changes nothing at first."""
    own, like = flatten_dict(params), jax.eval_shape(parts.init_params, jax.random.key(0))
    lacking = flatten_dict(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like))
    zeros = place({path: a for path, a in lacking.items() if path not in own})
    return unflatten_dict(own | zeros) if zeros else params


def first_params(
    config: Config, parts: Parts, workdir: pathlib.Path
) -> tuple[Config, Any, list[str]]:
    """(the config with the SHA-256 of what the run starts from, the averaged parameters of the run
    training.init, from which a run that has not begun starts, else None; what differs), of a
    teacher nothing may. UserError where the parameters are not those of the SHA-256."""
    named, begun = config.training.init, (workdir / "checkpoints").glob("*")
    if not named or any(path.name.isdigit() for path in begun):
        return config, None, []
    of = (named, "training.init", parts.objective.teacher)
    params, changed = params_of(config, parts, *of)
    digest, known = fingerprint(jax.device_get(params)), config.training.init_sha256
    if known and digest != known:
        raise UserError(
            f"config.training.init={named} has other parameters now than those that the run began "
            f"with: their SHA-256 is {digest[:12]}..., not {known[:12]}...; take another --workdir"
        )
    config = copy(config)
    config.training.init_sha256 = digest
    return config, filled(params, parts), changed


def shapes(parts: Parts) -> dict[str, tuple[int, ...]]:
    """Name of every parameter -> its shape."""
    found = jax.eval_shape(parts.init_params, jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {"/".join(key.key for key in path): a.shape for path, a in leaves}


def weak_params(config: Config, parts: Parts) -> Any:
    """The averaged parameters of the run sampling.guide.weak, None where it is empty."""
    if not parts.guide.weak:
        return None
    return filled(params_of(config, parts, parts.guide.weak, "sampling.guide.weak")[0], parts)


def open_run(config: Config, workdir: pathlib.Path, only: str) -> TrainedRun:
    """The run in a workdir, ready to draw as config.sampling says; UserError, which says what the
    command takes `only`."""
    check_same(config, workdir, only)
    check_attention(config)
    parts = build(config)
    params, step = restore_params(config, parts, workdir, config.sampling.ema)
    weak = weak_params(config, parts)
    if config.sampling.tolerance:
        parts = settled(config, parts, params, weak)
    if note := advice(config, parts.grid):
        print(note)
    return TrainedRun(parts, params, step, weak)


def settled(config: Config, parts: Parts, params: Any, weak: Any) -> Parts:
    """The run with the number of steps, set in config.sampling.steps and printed, that
    sampling.tolerance asks for."""
    sampling = config.sampling
    sampler = sampling.sampler.entry
    if sampling.grid.entry == "explicit":
        raise UserError(
            "config.sampling.tolerance chooses a number of steps, which an explicit grid does "
            "not take"
        )
    if draws_noise(parts.sampler):
        raise UserError(
            f"config.sampling.tolerance compares samples of the same noise, but {sampler} draws "
            "anew in every step; take ddim, dpmpp_2m, unipc or heun_flow"
        )

    def of(num_steps: int) -> Parts:
        sampling.steps = str(num_steps)
        levels = make_grid(config, parts.schedule)
        own = make_sampler(config, parts.schedule, levels, parts.variance)
        return parts._replace(grid=levels, sampler=own)

    def draw(num_steps: int):
        generate = make_generate(config, of(num_steps), weak=weak)
        return generate(params, np.arange(min(sampling.num, PILOT)))

    most = parts.schedule.num_steps or 1000
    try:
        num_steps, error = num_steps_for(draw, sampling.tolerance, most=most)
    except ValueError as problem:
        raise UserError(f"config.sampling.tolerance cannot be kept: {problem}") from None
    print(f"{num_steps} steps: {sampler} with {2 * num_steps} differs by {error:.2g}")
    return of(num_steps)


def manner(config: Config, parts: Parts, step: int, spacing: str = "") -> str:
    """How a run draws, as the name of a folder. spacing: what its steps are called, else they are
    sampling.steps."""
    sampling = config.sampling
    short = sampling.steps if len(sampling.steps) <= 40 else f"{len(parts.grid.t)}steps"
    spacing = spacing or short
    average = f"-ema{sampling.ema_length:g}" if sampling.ema_length else ""
    kind = f"{sampling.sampler.entry}-{spacing}" + (average if sampling.ema else "-raw")
    kind += f"-guidance{sampling.guidance:g}" if sampling.guidance else ""
    return f"step{step}-{kind}-seed{sampling.seed}"
