"""The training state: arrays only, so that it is saved, donated and replicated as it stands."""

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.types import PyTree


class TrainState(flax.struct.PyTreeNode):
    """What a step changes. `frozen`: parameters that are not trained; `aux`: the objective's own;
    `averages`: those by powers of time (`power_ema`), beside the EMA."""

    step: jax.Array  # int32 scalar, the number of optimizer steps taken
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    frozen: PyTree = ()
    aux: Any = ()
    averages: tuple[PyTree, ...] = ()


def init_state(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    frozen: PyTree = (),
    aux: PyTree = (),
    averages: int = 0,
) -> TrainState:
    """The state before the first step; the EMA, and so many other averages, start at the
    parameters."""
    ema_params, *others = (jax.tree.map(jnp.copy, params) for _ in range(1 + averages))
    zero, moments = jnp.zeros((), jnp.int32), optimizer.init(params)
    return TrainState(zero, params, ema_params, moments, frozen, aux, tuple(others))


def split(params: PyTree, pattern: str) -> tuple[PyTree, PyTree]:
    """(trained, frozen) parameters; frozen are those whose path, as down0_block0/conv1/kernel, the
    regular expression is found in, () where it is empty. ValueError where it is none, or finds none
    or all."""
    if not pattern:
        return params, ()
    flat = flatten_dict(params)
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    found = {path for path in flat if re.search(pattern, "/".join(path))}
    if not found or len(found) == len(flat):
        raise ValueError(f"{pattern!r} names {'all' if found else 'none'} of the parameters")
    part = lambda inside: {path: a for path, a in flat.items() if (path in found) == inside}
    return unflatten_dict(part(False)), unflatten_dict(part(True))


def whole(params: PyTree, frozen: PyTree) -> PyTree:
    """Trained and frozen parameters as one tree, what the network takes."""
    if not jax.tree.leaves(frozen):
        return params
    return unflatten_dict({**flatten_dict(params), **flatten_dict(frozen)})


def warmed_up_ema(decay: float):
    """step -> min(decay, (1 + step) / (10 + step)), the decay of the EMA after step 0, 1, ...

    Without the warm-up an EMA of 0.9999 is still 37 % initial weights after 10,000 steps.
    """
    return lambda step: jnp.minimum(decay, (1.0 + step) / (10.0 + step))
