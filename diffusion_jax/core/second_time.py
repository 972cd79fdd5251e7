"""A flow map's second time: the level that it goes to, which its network is told beside t."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Level
from diffusion_jax.core.waves import waves

NAME = "second_time"  # of the condition


def features(level: Level) -> jax.Array:
    """Sinusoids [..., 2 WAVES] of levels [...] by their angle, atan2(sigma, alpha) over pi / 2: 0
    for clean data and 1 for noise alone, whatever the schedule."""
    return waves(jnp.arctan2(level.sigma, level.alpha) * (2.0 / jnp.pi))


def told(cond: Any, level: Level) -> Any:
    """The cond with the level, [B], as its second time; itself where the network is told none."""
    if not (isinstance(cond, Mapping) and NAME in cond):
        return cond
    return {**cond, NAME: features(level)}
