"""The level that a flow map goes to."""

import jax.numpy as jnp

from diffusion_jax.conditioning.conditioner import Conditioner
from diffusion_jax.core.components import component
from diffusion_jax.core.second_time import NAME, features
from diffusion_jax.core.types import CLEAN, Kind, Kinds
from diffusion_jax.core.waves import WAVES


@component
def second_time() -> Conditioner:
    """The level that a flow map goes to, beside the one that it starts from (Boffi et al. 2024;
    Geng et al. 2025).

    A vector of sinusoids of the level's angle. Objectives and denoisers put in the level that they
    ask for, which is that of x itself for an ordinary denoiser; until then it is clean data's.
    """

    def example(count):
        level = CLEAN._replace(alpha=jnp.ones(count), sigma=jnp.zeros(count))
        return {NAME: features(level)}

    def train(keys, batch):
        return batch, example(len(next(iter(batch.values()))))

    def sample(keys, batch):
        known = [len(a) for a in (keys, *batch.values()) if a is not None]
        return example(known[0] if known else 1)

    return Conditioner(
        kinds=Kinds({NAME: Kind("vector", 2 * WAVES)}),
        reads=(),
        train=train,
        null=None,
        example=example,
        sample=sample,
    )
