"""What a network is told beside x, as one vector: the noise level's t, and conditions by name.

A network knows two mechanisms, not what the conditions mean: an "index" chooses a row of a learned
table, a "vector" passes a linear layer; both are added to the embedding of t.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Kinds
from diffusion_jax.models.embeddings import sinusoidal

MECHANISMS = ("index", "vector")


def split(kinds: Kinds, network: str) -> tuple[tuple[tuple[str, int], ...], tuple[str, ...]]:
    """(tables, vectors), as `embed` takes them, of a network that knows these two mechanisms.

    Raises ValueError, which names the network, for a condition that enters in another way."""
    for name, kind in kinds.items():
        if kind.how not in MECHANISMS:
            raise ValueError(
                f"the {network} takes conditions that are an index or a vector; {name!r} is of the "
                f"kind {kind.how!r}"
            )
    tables = tuple((name, kind.size) for name, kind in kinds.items() if kind.how == "index")
    return tables, tuple(name for name, kind in kinds.items() if kind.how == "vector")


def embed(
    t: jax.Array,
    cond: Mapping | None,
    channels: int,
    width: int,
    tables: tuple[tuple[str, int], ...] = (),
    vectors: tuple[str, ...] = (),
) -> jax.Array:
    """Embedding [B, width] float32 of t [B] and of the conditions, for a module's compact call.

    t becomes sinusoids [B, channels], then passes two linear layers, "time1" and "time2" (Ho et al.
    2020, appendix B). tables: the names of the conditions that are indices [B], with their rows;
    each has a layer of its name, as each vector [B, n] has, which is without bias, so that a
    missing vector counts as zeros (Karras et al. 2022, appendix F.2). A vector's layer is made only
    where init is told one. Raises ValueError for a condition of another name, for a missing index
    and for a t that is not one number an example."""
    if jnp.ndim(t) != 1:
        raise ValueError(f"t must be one number an example, [B], not of shape {jnp.shape(t)}")
    told = {name: value for name, value in (cond or {}).items() if value is not None}
    indices = dict(tables)
    unknown = [name for name in told if name not in indices and name not in vectors]
    if unknown:
        known = ", ".join(map(repr, (*indices, *vectors))) or "none"
        raise ValueError(
            f"cond has {unknown[0]!r}, which this network does not know; known: {known}"
        )
    missing = [name for name in indices if name not in told]
    if missing:
        raise ValueError(f"cond lacks {missing[0]!r}, an index [B] that this network needs")

    # bfloat16 has 8 bits: it would take most pairs of neighbouring t for one
    features = sinusoidal(t, channels)
    features = nn.silu(nn.Dense(width, dtype=jnp.float32, name="time1")(features))
    embedding = nn.Dense(width, dtype=jnp.float32, name="time2")(features)
    for name, rows in tables:
        embedding += nn.Embed(rows, width, dtype=jnp.float32, name=name)(told[name])
    for name in vectors:
        if name in told:
            layer = nn.Dense(width, use_bias=False, dtype=jnp.float32, name=name)
            embedding += layer(told[name])
    return embedding
