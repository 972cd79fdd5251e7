"""Class labels."""

from typing import Annotated

import jax.numpy as jnp

from diffusion_jax.conditioning.conditioner import Conditioner
from diffusion_jax.conditioning.dropping import kept
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import TRAINING, check_dropout
from diffusion_jax.core.types import Kind, Kinds
from diffusion_jax.data.spec import Declared

PART = 1  # of an example's randomness


@component
def label(declared: Declared, dropout: Annotated[float, TRAINING] = 0.0) -> Conditioner:
    """The class of an example, a row of a table; the last row means "none" where some are dropped.

    Ho & Salimans 2022, algorithm 1. Of data without classes nothing is told.

    Args:
      dropout: share of the training examples without their label, for guidance; at least 0,
        below 1.
    """
    count = declared.num_classes
    check_dropout(dropout)
    if dropout and not count:
        raise ValueError("dropout needs labels: data.num_classes above 0")
    if not count:
        return Conditioner(Kinds(), (), lambda keys, batch: (batch, {}), None, lambda n: {})

    def train(keys, batch):
        labels = batch["label"]
        if keys is not None and dropout > 0:
            keep = kept(keys, PART, dropout, len(labels))
            labels = jnp.where(keep > 0, labels, count)
        return batch, {"label": labels}

    def null(cond):
        return {"label": jnp.full_like(cond["label"], count)}

    return Conditioner(
        kinds=Kinds({"label": Kind("index", count + (dropout > 0))}),
        reads=("label",),
        train=train,
        null=null if dropout else None,
        example=lambda n: {"label": jnp.zeros((n,), jnp.int32)},
    )
