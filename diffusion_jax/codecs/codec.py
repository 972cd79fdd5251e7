"""The noun of a codec."""

from collections.abc import Callable
from typing import Any, NamedTuple

from diffusion_jax.core.types import PyTree


class Codec(NamedTuple):
    """A way from data to x0 and back.

    encode: (params, keys [B] or None, data [B, ...]) -> x0 [B, *shape], float32. decode: (params,
    x0 [B, *shape]) -> data [B, ...]; NumPy arrays give NumPy arrays. shape: of one x0. range: the
    least and the largest value of x0; None where clipping it makes no sense. bins: how many
    values, evenly spread over the range, a number of x0 can have; None where bits/dim make no
    sense. params: what encode and decode are given.
    """

    encode: Callable[..., Any]
    decode: Callable[..., Any]
    shape: tuple[int, ...]
    range: tuple[float, float] | None = (-1.0, 1.0)
    bins: int | None = None
    params: PyTree = ()
