"""sampling.half_until: whether a run can begin at half size, and its levels there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Level
from diffusion_jax.runs.build import Parts
from diffusion_jax.runs.config import Config
from diffusion_jax.samplers.half_size import matched

FIELD = "config.sampling.half_until"


class HalfSize(NamedTuple):
    """The first part of a chain."""

    shape: tuple[int, ...]  # of its x
    grid: Level  # its levels, the last of which is where it is doubled


def check_whole(config: Config, what: str) -> None:
    """Raises UserError where a run would begin at half size."""
    if config.sampling.half_until is not None:
        raise UserError(f"{what} at full size alone: set {FIELD}=none")


def half_size(config: Config, parts: Parts) -> HalfSize | None:
    """The part of a run's chain at half size, None where sampling.half_until is none.

    Raises UserError where the data, the conditions or the network are of one size."""
    until = config.sampling.half_until
    if until is None:
        return None
    shape = tuple(parts.codec.shape)
    if len(shape) != 3 or shape[0] % 2 or shape[1] % 2:
        raise UserError(f"{FIELD} halves images of even height and width, not {shape}")
    bound = [name for name, kind in parts.conditioner.kinds.items() if kind.how == "image"]
    if bound:
        raise UserError(
            f"{FIELD} must be none: the network is told {bound[0]}, an image of one size"
        )
    if config.sampling.quantize:
        raise UserError(
            f"{FIELD} needs levels between a table's: set config.sampling.quantize=false"
        )
    small = (shape[0] // 2, shape[1] // 2, shape[2])
    params = jax.eval_shape(parts.init_params, jax.random.key(0))
    cond = parts.conditioner.example(1)
    try:
        jax.eval_shape(parts.apply_fn, params, jnp.zeros((1, *small)), jnp.zeros((1,)), cond)
    except Exception as error:
        said = str(error).splitlines()[0]
        raise UserError(
            f"{FIELD} must be none: the network takes no {small[0]} x {small[1]} ({said})"
        ) from None
    try:
        return HalfSize(small, matched(parts.schedule, parts.grid, until))
    except ValueError as error:
        raise UserError(f"{FIELD}: {error}") from None
