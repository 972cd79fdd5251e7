"""The weight of guidance, told to a network that has learnt what guidance does (Meng et al. 2023,
"On Distillation of Guided Diffusion Models")."""

from typing import Annotated

import jax
import jax.numpy as jnp

from diffusion_jax.conditioning.conditioner import Conditioner
from diffusion_jax.conditioning.dropping import part_of
from diffusion_jax.core.components import component
from diffusion_jax.core.noise import fold_in, threefry
from diffusion_jax.core.settings import TRAINING, at_least
from diffusion_jax.core.types import Array, Kind, Kinds

NAME = "guidance_weight"  # of the condition and, where examples are drawn, of a batch's entry
WAVES = 4  # frequencies by which a weight is told


@component
def guidance_weight(
    low: Annotated[float, TRAINING] = 0.0, high: Annotated[float, TRAINING] = 4.0
) -> Conditioner:
    """The weight w of guidance, by which the network guides itself in one call (Meng et al. 2023,
    section 3.1).

    In training w is drawn evenly from [low, high], by each example's own key; in sampling it is
    sampling.guidance. Where nothing is drawn and none is given, w is 0, no guidance, whose features
    are zeros.

    Args:
      low: the least weight, at least 0.
      high: the largest weight, at least low.
    """
    at_least(0, low=low)
    at_least(low, high=high)

    def train(keys, batch):
        if keys is None:
            w = jnp.zeros(len(jax.tree.leaves(batch)[0]))
        else:
            drawn = jax.vmap(jax.random.uniform)(threefry(fold_in(keys, part_of(NAME))))
            w = low + (high - low) * drawn
        return batch, {NAME: features(w)}

    def sample(keys, batch):
        if NAME not in batch:
            return {}  # which counts as zeros
        return {NAME: features(jnp.asarray(batch[NAME], jnp.float32))}

    return Conditioner(
        kinds=Kinds({NAME: Kind("vector", 1 + 2 * WAVES)}),
        reads=(),
        train=train,
        null=None,
        example=lambda n: {NAME: jnp.zeros((n, 1 + 2 * WAVES))},
        sample=sample,
    )


def features(w: Array) -> jax.Array:
    """Of weights [B]: w, sin(k w) and 1 - cos(k w) for k = 1, 1/2, 1/4, 1/8; [B, 1 + 2 WAVES].

    All are 0 at w = 0, so that a network that is told nothing does not guide itself."""
    w = jnp.asarray(w)[:, None]
    angles = w * 0.5 ** jnp.arange(WAVES)
    return jnp.concatenate([w, jnp.sin(angles), 1.0 - jnp.cos(angles)], axis=1)


def weights(features: jax.Array) -> jax.Array:
    """The weights [B] of their features."""
    return features[:, 0]
