"""Marks of settings: what a change of a factory's argument means for a run.

`Annotated[bool, FREE]` in a factory's signature, beside the setting itself.
"""

from typing import NamedTuple


class Mark(NamedTuple):
    """free: it may change between two starts in one workdir. network: it makes another network."""

    free: bool = False
    network: bool = True


FREE = Mark(free=True, network=False)
TRAINING = Mark(network=False)
