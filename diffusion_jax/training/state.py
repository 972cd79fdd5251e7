"""The training state: arrays only, so that it is saved, donated and replicated as it stands."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.core.types import PyTree


class TrainState(flax.struct.PyTreeNode):
    """What a step changes. `timesteps` is the state of the distribution of t, () for one that has
    none."""

    step: jax.Array  # int32 scalar, the number of optimizer steps taken
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree
    timesteps: Any = ()


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, timesteps: PyTree = ()
) -> TrainState:
    """The state before the first step; the EMA starts at the parameters."""
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(
        jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params), timesteps
    )


def warmed_up_ema(decay: float):
    """step -> min(decay, (1 + step) / (10 + step)), the decay of the EMA after step 0, 1, ...

    Without the warm-up an EMA of 0.9999 is still 37 % initial weights after 10,000 steps.
    """
    return lambda step: jnp.minimum(decay, (1.0 + step) / (10.0 + step))
