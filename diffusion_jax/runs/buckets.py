"""What must hold of a run that trains on images of several sizes."""

from typing import Any

import jax

from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.build import Parts
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.network import as_key, beginning


def check_buckets(config: Config, parts: Parts, source: Any) -> None:
    """Raises UserError where the source has buckets and the run cannot train on them: the network
    must take images of each, at the same parameters."""
    sizes, called = getattr(source, "bucket_sizes", ()), "config.data.source.buckets"
    if not sizes:
        return
    if config.training.steps_per_call > 1:
        raise UserError(
            f"{called}: a batch is of one size, and several steps a call would need batches of "
            "equal sizes; set config.training.steps_per_call=1"
        )
    if parts.codec.kept or tuple(parts.codec.shape) != tuple(config.data.shape):
        raise UserError(f"{called} are of pixels, which config.codec={config.codec.entry} is not")
    module, cond = parts.apply_fn.module, jax.eval_shape(lambda: parts.conditioner.example(1))
    shapes = lambda size: beginning(module, (*size, parts.codec.shape[2]), *as_key(cond)).params
    own = shapes(parts.codec.shape[:2])
    for height, width in sizes:
        entry = f"{called}: config.model={config.model.entry} does not take {height} x {width}"
        try:
            found = shapes((height, width))
        except (TypeError, ValueError) as error:
            raise UserError(f"{entry}: {str(error).splitlines()[0]}") from None
        if found != own:
            raise UserError(f"{entry} with the parameters that it has for config.data.shape")
