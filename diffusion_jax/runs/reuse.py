"""sampling.cache_every: a run's sampler that computes deep features only every so many steps."""

from collections.abc import Callable

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Denoiser, Sampler
from diffusion_jax.models.reuse import Reuse
from diffusion_jax.runs.build import Parts
from diffusion_jax.runs.config import Config
from diffusion_jax.samplers.reused import reused

FIELD = "config.sampling.cache_every"


def check_reuse(config: Config, parts: Parts) -> None:
    """Raises UserError where deep features cannot be kept."""
    if not getattr(parts.apply_fn, "can_reuse", False):
        raise UserError(f"{FIELD} must be 1: {config.model.entry} has no deep features to keep")
    if config.sampling.half_until is not None:
        raise UserError(f"{FIELD} must be 1 with config.sampling.half_until, of two sizes")
    if parts.sampler.last is not None:
        raise UserError(f"{FIELD} must be 1 with config.sampling.sampler=flow_map")
    guided = bool(config.sampling.guidance)
    if guided and (parts.guide.interval or parts.guide.every > 1):
        raise UserError(
            f"{FIELD} must be 1 where config.sampling.guide has an interval or is cached itself"
        )


def reusing_sampler(
    config: Config, parts: Parts, denoiser_of: Callable[[Parts], Denoiser]
) -> Sampler:
    """The run's sampler with sampling.cache_every and cache_blocks. denoiser_of: the run's denoiser
    of parts with another network."""
    check_reuse(config, parts)

    def network(x, level, deep):
        held = []

        def apply_fn(params, x_in, t_in, cond=None):
            reuse = Reuse(config.sampling.cache_blocks, None if deep is None else deep[len(held)])
            try:
                output, features = parts.apply_fn.reusing(params, x_in, t_in, cond, reuse)
            except ValueError as error:
                raise UserError(f"config.sampling.cache_blocks: {error}") from None
            held.append(features)
            return output

        other = parts._replace(apply_fn=apply_fn)  # pyright: ignore[reportArgumentType]
        return denoiser_of(other)(x, level), tuple(held)

    return reused(parts.sampler, network, config.sampling.cache_every)
