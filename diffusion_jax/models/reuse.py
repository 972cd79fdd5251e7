"""Deep features of a network that are computed once and used again at another x and t."""

from typing import Any, NamedTuple

from diffusion_jax.core.settings import at_least


class Reuse(NamedTuple):
    """What a network is asked for beside its output.

    With `deep` None it computes all and returns (output, deep); with an earlier call's `deep` it
    leaves out what that stands for and returns (output, deep), the same deep.

    blocks: how many are computed in every call, from each end: of the U-Net's first level, down
    and, one more, up (DeepCache, Ma et al. 2024, section 3); of a transformer, the first and the
    last ones, between which what the others add is kept (Delta-DiT, Chen et al. 2024)."""

    blocks: int = 0
    deep: Any = None


def check_blocks(blocks: int, most: int) -> None:
    """Raises ValueError for more blocks than there are beside deep ones."""
    at_least(0, blocks=blocks)
    if blocks > most:
        raise ValueError(f"blocks must be at most {most} of this network, not {blocks}")
