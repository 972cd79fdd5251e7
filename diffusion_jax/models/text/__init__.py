"""Text encoders: BERT, CLIP's text tower and T5's encoder, and their features, kept on the disk."""

from collections.abc import Sequence

from diffusion_jax.conditioning import Encoders
from diffusion_jax.models.text.features import Table, embed, table
from diffusion_jax.models.text.load import TextEncoder, load


def _width(name: str, length: int) -> int:
    return load(name, length).width


def _table(name: str, length: int, texts: Sequence[str]) -> Table:
    return table(load(name, length), texts)


ENCODERS = Encoders(_width, _table)

__all__ = ["ENCODERS", "Table", "TextEncoder", "embed", "load", "table"]
