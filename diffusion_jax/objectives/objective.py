"""The nouns of an objective: what one step minimises, and what it is given for that."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from diffusion_jax.codecs import Codec
from diffusion_jax.conditioning import Conditioner
from diffusion_jax.core import second_time
from diffusion_jax.core.noise import fold_in, normal
from diffusion_jax.core.types import (
    ApplyFn,
    Batch,
    Cond,
    Level,
    Parameterization,
    PyTree,
    Schedule,
    Timesteps,
    Variance,
)
from diffusion_jax.denoisers import NetworkDenoiser, make_denoiser


class Context(NamedTuple):
    """What the loss of a step may look at, beside parameters, its own state and the batch."""

    apply_fn: ApplyFn  # (params, x_in, t_in, cond, dropout_key) -> output
    ema_params: PyTree  # the averaged parameters, such as for a teacher
    step: Any  # int32 scalar
    keys: Any  # [B], one an example
    t: Any  # [B]
    weights: Any  # [B], by which the losses are multiplied afterwards
    dropout_key: Any = None  # of the batch; None where no layer drops anything
    training: bool = True  # False: every condition is told, and nothing is augmented


class Objective(NamedTuple):
    """What training minimises.

    init: (key, params) -> aux, arrays that a step may change and a checkpoint keeps: the history of
    an adaptive distribution of t, a teacher, a critic; () for none. sample: (aux, key, index [B],
    total) -> (t [B], weights [B]) of examples number index of total. loss: (params, aux, context,
    batch) -> (losses [B], report), the report a dict of arrays [B, ...]: those of one axis are
    logged as their means, but for `logsnr`, by which the losses are logged in quartiles; those of
    more are for `update` and `after`. update: (aux, state, report) -> aux; the state is that after
    the step, and the report of the whole batch holds besides `t`, `weights` and `losses`. after:
    (params, aux, report) -> params, what becomes of the parameters behind the optimizer and before
    they are averaged, such as of a codebook that is not learned by gradient; aux is that before the
    step. reconstruct: (apply_fn, params, x0 [B, *shape]) -> x0, what a run draws, of held-out
    examples, in place of samples. teacher: whether it learns from a trained network: then `init` is
    given the teacher's params, with which the student starts, too, and aux keeps them where they
    are needed later. mean: whether the network's x0 is the mean of the data given x, which
    likelihoods are of.
    """

    init: Callable[[jax.Array, PyTree], PyTree]
    sample: Callable[..., tuple[Any, Any]]
    loss: Callable[[PyTree, PyTree, Context, Batch], tuple[jax.Array, dict[str, Any]]]
    update: Callable[[PyTree, Any, dict[str, Any]], PyTree]
    after: Callable[[PyTree, PyTree, dict[str, Any]], PyTree] | None = None
    reconstruct: Callable[[ApplyFn, PyTree, jax.Array], jax.Array] | None = None
    teacher: bool = False
    mean: bool = True


class Problem(NamedTuple):
    """What a run is about, from which an objective is made."""

    schedule: Schedule
    parameterization: Parameterization
    timesteps: Timesteps
    codec: Codec
    conditioner: Conditioner
    weighting: Callable[[Level], Any] | None = None  # one of `weightings`
    variance: Variance = "fixed_small"  # of the reverse process
    entry: str = "image"  # the data's name in a batch


class Example(NamedTuple):
    """Data at a noise level, and what the network is told of them."""

    x0: jax.Array  # [B, *shape]
    eps: jax.Array  # [B, *shape]
    level: Level  # [B]
    cond: Cond


def noised(problem: Problem, context: Context, batch: Batch) -> Example:
    """The batch as x0, with noise and levels by the examples' own keys and t.

    Part 0 of an example's randomness is its noise; conditioners and codecs take others. A second
    time is that of an ordinary denoiser, the level itself.
    """
    keys = context.keys
    batch, cond = problem.conditioner.train(keys if context.training else None, batch)
    codec = problem.codec
    params = () if codec.moments else codec.params  # a program holds no autoencoder: see Codec
    x0 = codec.encode(params, fold_in(keys, 3), batch[problem.entry])
    eps = normal(fold_in(keys, 0), x0.shape[1:])
    level = problem.schedule.level(context.t)
    return Example(x0, eps, level, second_time.told(cond, level))


def network(params: PyTree, context: Context) -> Callable:
    """(x_in, t_in, cond) -> output, the network at these parameters."""

    def call(x_in, t_in, cond):
        return context.apply_fn(params, x_in, t_in, cond, context.dropout_key)

    return call


def method(apply_fn: ApplyFn, name: str) -> Callable[..., Any]:
    """(params, ...) -> what the network's method of that name returns, such as `encode`."""
    return apply_fn.method(name)  # pyright: ignore[reportFunctionMemberAccess]


def denoiser(problem: Problem, params: PyTree, context: Context, cond: Cond) -> NetworkDenoiser:
    """The network at these parameters as a denoiser, such as a student, or a teacher at
    `context.ema_params`."""

    def apply_fn(params, x_in, t_in, cond):
        return context.apply_fn(params, x_in, t_in, cond, context.dropout_key)

    return make_denoiser(apply_fn, params, problem.parameterization, cond)


def with_times(timesteps: Timesteps, loss: Callable) -> Objective:
    """The objective of a loss, whose aux is the state of the distribution of t."""

    def init(key, params):
        return {"timesteps": timesteps.init()}

    def sample(aux, key, index, total):
        return timesteps.sample(aux["timesteps"], key, index, total)

    def update(aux, state, report):
        return {"timesteps": timesteps.update(aux["timesteps"], report["t"], report["losses"])}

    return Objective(init, sample, loss, update)
