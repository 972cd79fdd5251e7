"""Any entry of a batch, as it is: with a mask, as a vector of numbers, or as an image."""

from typing import Annotated

import jax.numpy as jnp

from diffusion_jax.conditioning.conditioner import Conditioner
from diffusion_jax.conditioning.dropping import kept, masked, part_of
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import TRAINING, check_dropout
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
    check_dropout(dropout)
    shape, dtype = entry(spec, name)
    part = part_of(name)

    def train(keys, batch):
        values = jnp.asarray(batch[name])
        keep = kept(keys, part, dropout, len(values))
        return batch, {name: (masked(values, keep), keep)}

    def null(cond):
        values, keep = cond[name]
        nothing = jnp.zeros_like(keep)
        return {name: (masked(values, nothing), nothing)}

    def example(n):
        return {name: (jnp.zeros((n, *shape), dtype), jnp.ones((n,), jnp.float32))}

    size = shape[-1] if shape else 1
    kinds = Kinds({name: Kind("given", size)})
    return Conditioner(kinds, (name,), train, null if dropout else None, example)


@component
def numbers(
    spec: Spec, name: str = "numbers", dropout: Annotated[float, TRAINING] = 0.1
) -> Conditioner:
    """Numbers of an example, as a vector whose last element says whether they are known.

    An entry of the source's examples, flattened, and a 1; all 0 where an example is dropped.

    Args:
      name: the entry, such as an array of an .npz beside `images`.
      dropout: share of the training examples without them, for guidance; at least 0, below 1.
    """
    check_dropout(dropout)
    shape, _ = entry(spec, name)
    size = 1
    for length in shape:
        size *= length
    part = part_of(name)

    def train(keys, batch):
        values = jnp.asarray(batch[name], jnp.float32).reshape(-1, size)
        keep = kept(keys, part, dropout, len(values))
        return batch, {name: jnp.concatenate([masked(values, keep), keep[:, None]], axis=1)}

    return _masked_arrays(name, Kind("vector", size + 1), (size + 1,), train, dropout)


@component
def image(
    spec: Spec,
    name: str = "low",
    low: float = 0.0,
    high: float = 255.0,
    dropout: Annotated[float, TRAINING] = 0.0,
) -> Conditioner:
    """An image beside the example, as further channels of x, and one that says whether it is known.

    An entry of the source's examples of the same height and width, such as a map or a sketch; all
    its channels are 0 where an example is dropped (Saharia et al. 2022, Palette, section 3).

    Args:
      name: the entry, such as an array of an .npz beside `images`.
      low: its value that the network sees as -1.
      high: its value that the network sees as 1.
      dropout: share of the training examples without it, for guidance; at least 0, below 1.
    """
    check_dropout(dropout)
    if not low < high:
        raise ValueError(f"low must be below high, not {low:g} and {high:g}")
    shape, _ = entry(spec, name)
    if len(shape) != 3:
        raise ValueError(f"{name!r} must be images [H, W, C], not of the shape {shape}")
    part, size = part_of(name), shape[2] + 1

    def train(keys, batch):
        values = (jnp.asarray(batch[name], jnp.float32) - low) * (2 / (high - low)) - 1
        keep = kept(keys, part, dropout, len(values))
        values = jnp.concatenate([values, jnp.ones((*values.shape[:3], 1))], axis=-1)
        return batch, {name: masked(values, keep)}

    return _masked_arrays(name, Kind("image", size), (*shape[:2], size), train, dropout)


def _masked_arrays(name, kind: Kind, shape, train, dropout: float) -> Conditioner:
    """The conditioner of one array an example, which is 0 where nothing is known."""

    def null(cond):
        return {name: jnp.zeros_like(cond[name])}

    def example(n):
        return {name: jnp.zeros((n, *shape), jnp.float32)}

    return Conditioner(Kinds({name: kind}), (name,), train, null if dropout else None, example)


def entry(spec: Spec, name: str) -> tuple[tuple[int, ...], str]:
    """(shape, dtype) of an entry of the data; ValueError where they have none of that name."""
    shapes = dict(spec)
    if name not in shapes:
        raise ValueError(f"the data have no entry {name!r}; they have {', '.join(sorted(shapes))}")
    return shapes[name]
