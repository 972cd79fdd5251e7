"""Denoisers of flow maps, whose networks are told the level that they go to."""

import dataclasses
from typing import Any

from diffusion_jax.core.types import Denoiser, Level
from diffusion_jax.denoisers.limits import Clipped, Thresholded
from diffusion_jax.denoisers.network import NetworkDenoiser


def going_to(denoiser: Denoiser, level: Level, limits: bool = True) -> Denoiser:
    """The denoiser of the flow map to a level, scalar or [B]: with its x0 and eps, x at the level
    is alpha x0 + sigma eps (Geng et al. 2025: x less the average velocity times the way).

    The networks in it are told that level in place of their x's own. One without a second time, and
    a function of Python, stay as they are.

    Args:
      limits: whether x0 is kept to the data's range, as is right for the map to clean data alone:
        the x0 of another one is no image.
    """
    if isinstance(denoiser, NetworkDenoiser):
        return denoiser._replace(to=level)
    if isinstance(denoiser, Clipped | Thresholded) and not limits:
        return going_to(denoiser.denoiser, level, limits)
    inner: dict[str, Any] = {}
    if (one := getattr(denoiser, "denoiser", None)) is not None:
        inner["denoiser"] = going_to(one, level, limits)
    if several := getattr(denoiser, "denoisers", ()):
        inner["denoisers"] = tuple(going_to(one, level, limits) for one in several)
    wrapper: Any = denoiser
    return dataclasses.replace(wrapper, **inner) if inner else denoiser
