"""Guidance of a run: what its denoiser is led away from."""

from typing import NamedTuple

from diffusion_jax.core.components import component


class Guide(NamedTuple):
    """How a run is guided. weak: the workdir of a weaker run; empty: by the run without its
    condition.

    interval: sigma / alpha between which guidance acts, None for all. rescale: the share in which a
    guided image's contrast is brought back. every: steps between two evaluations of what it is led
    away from.
    """

    weak: str = ""
    interval: tuple[float, ...] | None = None
    rescale: float = 0.0
    every: int = 1


def _guide(weak: str, interval: tuple[float, ...], rescale: float, every: int) -> Guide:
    if interval and not (len(interval) == 2 and 0.0 <= interval[0] < interval[1]):
        raise ValueError(f"interval must be 0 <= low < high, as in 0.3,3, not {interval}")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale must lie in [0, 1], not {rescale}")
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    return Guide(weak, interval or None, rescale, every)


@component
def classifier_free(
    interval: tuple[float, ...] = (), rescale: float = 0.0, every: int = 1
) -> Guide:
    """Away from the run's own network without the condition (Ho & Salimans 2022, eq. 6).

    Args:
      interval: sigma/alpha between which it acts, low and high, as 0.3,3; empty for all levels.
      rescale: share in [0, 1] in which a guided image's contrast is brought back to the
        unguided one's.
      every: steps between two evaluations of the network without the condition, at least 1.
    """
    return _guide("", interval, rescale, every)


@component
def autoguidance(
    weak: str = "", interval: tuple[float, ...] = (), rescale: float = 0.0, every: int = 1
) -> Guide:
    """Away from a weaker run of the same network (Karras et al. 2024, eq. 3).

    Args:
      weak: the workdir of the weaker run.
      interval: sigma/alpha between which it acts, low and high, as 0.3,3; empty for all levels.
      rescale: share in [0, 1] in which a guided image's contrast is brought back to the
        unguided one's.
      every: steps between two evaluations of the weaker network, at least 1.
    """
    if not weak:
        raise ValueError("weak must be the workdir of a weaker run")
    return _guide(weak, interval, rescale, every)


GUIDES = {"classifier_free": classifier_free, "autoguidance": autoguidance}
