"""Transforms that keep x0 in the data's range: clipping and dynamic thresholding."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from diffusion_jax.core.settings import above, inside
from diffusion_jax.core.types import Denoiser, Level, Prediction, expand
from diffusion_jax.denoisers.network import STATIC, as_node, with_eps


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Clipped:
    """What `clip_x0` returns."""

    denoiser: Denoiser
    low: float = field(metadata=STATIC)
    high: float = field(metadata=STATIC)

    def __call__(self, x, level: Level) -> Prediction:
        prediction = self.denoiser(x, level)
        return with_eps(jnp.clip(prediction.x0, self.low, self.high), x, level, prediction.aux)


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clips x0 to the data's range and recomputes eps from it (Ho et al. 2020's samplers; DDIM
    needs the eps, too).

    Args:
      low: the least value of x0.
      high: the largest value of x0.
    """
    return Clipped(as_node(denoiser), low, high)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Thresholded:
    """What `dynamic_threshold` returns."""

    denoiser: Denoiser
    percentile: float = field(metadata=STATIC)
    least: float = field(metadata=STATIC)

    def __call__(self, x, level: Level) -> Prediction:
        prediction = self.denoiser(x, level)
        sizes = jnp.abs(prediction.x0).reshape(x.shape[0], -1)
        size = jnp.quantile(sizes, self.percentile, axis=1)
        s = expand(jnp.maximum(size, self.least), x.ndim)
        return with_eps(jnp.clip(prediction.x0, -s, s) / s, x, level, prediction.aux)


def dynamic_threshold(
    denoiser: Denoiser, percentile: float = 0.995, least: float = 1.0
) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): x0 clipped to [-s, s] and divided by
    s; eps recomputed.

    Args:
      percentile: s, one an example, is this quantile of its |x0|; from 0 to 1.
      least: the least s, above 0.
    """
    inside(0, 1, percentile=percentile)
    above(0, least=least)
    return Thresholded(as_node(denoiser), percentile, least)
