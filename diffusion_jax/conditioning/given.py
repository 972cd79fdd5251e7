"""Any entry of a batch, as it is."""

import zlib
from typing import Annotated

import jax
import jax.numpy as jnp

from diffusion_jax.conditioning.conditioner import Conditioner
from diffusion_jax.core.components import component
from diffusion_jax.core.noise import fold_in
from diffusion_jax.core.settings import TRAINING
from diffusion_jax.core.types import Kind, Kinds
from diffusion_jax.data.spec import Spec


@component
def given(spec: Spec, name: str = "text", dropout: Annotated[float, TRAINING] = 0.0) -> Conditioner:
    """An entry of the source's examples as it is, with a mask that says whose is known.

    The network finds (values [B, ...], keep [B] of ones and zeros) under the entry's name; where an
    example is dropped its values and its mask are 0. What the values mean is the network's affair.

    Args:
      name: the entry, such as an array of an .npz beside `images`.
      dropout: share of the training examples without it, for guidance; at least 0, below 1.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
    shapes = dict(spec)
    if name not in shapes:
        raise ValueError(f"the data have no entry {name!r}; they have {', '.join(sorted(shapes))}")
    shape, dtype = shapes[name]
    part = zlib.crc32(name.encode()) >> 1  # of an example's randomness

    def masked(values, keep):
        shaped = keep.reshape(keep.shape + (1,) * (values.ndim - 1))
        return jnp.where(shaped > 0, values, jnp.zeros_like(values)), keep

    def train(keys, batch):
        values = jnp.asarray(batch[name])
        keep = jnp.ones(values.shape[:1], jnp.float32)
        if keys is not None and dropout > 0:
            own = fold_in(keys, part)
            drop = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(own)
            keep = jnp.where(drop, 0.0, keep)
        return batch, {name: masked(values, keep)}

    def null(cond):
        values, keep = cond[name]
        return {name: masked(values, jnp.zeros_like(keep))}

    def example(n):
        return {name: (jnp.zeros((n, *shape), dtype), jnp.ones((n,), jnp.float32))}

    size = shape[-1] if shape else 1
    kinds = Kinds({name: Kind("given", size)})
    return Conditioner(kinds, (name,), train, null if dropout else None, example)
