"""Text by its words' characters, for those who have no weights of a text encoder.

A word is the set of its character n-grams, each a row of a table that the network learns
(Bojanowski et al. 2017, "Enriching Word Vectors with Subword Information"). So a misspelt or an
unknown word is near those that it shares letters with.
"""

import re
import unicodedata
import zlib
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditioning.conditioner import Conditioner, Prepared
from diffusion_jax.conditioning.dropping import kept, masked, part_of
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import TRAINING, above, check_dropout
from diffusion_jax.core.types import Kind, Kinds
from diffusion_jax.data import texts

NAME, ENTRY = "text", "words"  # of the condition, and of a batch's entry
GRAMS = 24  # rows a word, at most


def split(text: str) -> list[str]:
    """The words of a text: letters and digits in lower case, in Unicode's form NFKC."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def grams(word: str, rows: int) -> list[int]:
    """The table's rows of a word: of itself, and of its 3 to 5 neighbouring characters, with < and
    > at its ends; 1 ... rows - 1, by CRC-32."""
    framed = f"<{word}>"
    parts = [framed]
    for n in (3, 4, 5):
        parts += [framed[i : i + n] for i in range(len(framed) - n + 1) if n < len(framed)]
    return [1 + zlib.crc32(part.encode()) % (rows - 1) for part in parts[:GRAMS]]


def rows_of(text: str, length: int, rows: int) -> np.ndarray:
    """int32 [length, GRAMS], a row of numbers a word, 0 where there is none."""
    found = np.zeros((length, GRAMS), np.int32)
    for place, word in zip(found, split(text)[:length], strict=False):
        chosen = grams(word, rows)
        place[: len(chosen)] = chosen
    return found


@component
def words(
    length: int = 16, rows: int = 8192, dropout: Annotated[float, TRAINING] = 0.1
) -> Conditioner:
    """The words of an example's text by their characters, learned with the network.

    Args:
      length: words of a text, at most; what follows is cut off.
      rows: of the table that n-grams of characters are hashed to, at least 2.
      dropout: share of the training examples without text, for guidance; at least 0, below 1.
    """
    check_dropout(dropout)
    above(0, length=length)
    above(1, rows=rows)
    part = part_of(NAME)

    def told(values, keep):
        there = (values > 0).any(axis=2).astype(jnp.float32) * keep[:, None]
        return {NAME: (masked(values, keep), there)}

    def train(keys, batch):
        values = jnp.asarray(batch[ENTRY])
        return batch, told(values, kept(keys, part, dropout, len(values)))

    def null(cond):
        values, _ = cond[NAME]
        return told(values, jnp.zeros(len(values), jnp.float32))

    def example(n):
        values = jnp.ones((n, length, GRAMS), jnp.int32)
        return told(values, jnp.ones((n,), jnp.float32))

    def prepare(source):
        texts.check(source)
        known: dict[bytes, np.ndarray] = {}  # the texts of a source are few, or soon all known

        def entries(example):
            text = np.asarray(example["text"]).tobytes()
            if text not in known:
                known[text] = rows_of(texts.decode(example["text"]), length, rows)
            return {ENTRY: known[text]}

        def notes():
            every = [texts.decode(row) for row in np.unique(texts.of(source), axis=0)]
            longer = sum(len(split(text)) > length for text in every)
            cut = (
                f"{longer} of {len(every)} texts have more than {length} words, of which the first"
            )
            return [f"{cut} are taken"] * bool(longer)

        return Prepared(source, entries, notes)

    kinds = Kinds({NAME: Kind("bags", rows)})
    return Conditioner(kinds, (ENTRY,), train, null if dropout else None, example, prepare)
