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
    sense. read: () -> what encode and decode are given, such as an autoencoder's parameters, which
    are read when they are first asked for. moments: (params, data) -> what a data set is encoded
    as beforehand, of shape `kept`, of which encode then draws x0 without any params; None where
    data are encoded as they are. A training step sees moments alone.
    """

    encode: Callable[..., Any]
    decode: Callable[..., Any]
    shape: tuple[int, ...]
    range: tuple[float, float] | None = (-1.0, 1.0)
    bins: int | None = None
    read: Callable[[], PyTree] = tuple
    moments: Callable[..., Any] | None = None
    kept: tuple[int, ...] = ()

    @property
    def params(self) -> PyTree:
        """What encode and decode are given."""
        return self.read()
