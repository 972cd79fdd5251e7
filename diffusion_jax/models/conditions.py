"""What a network is told beside x: the noise level's t, and conditions by name.

A network knows mechanisms, not what the conditions mean. An "index" chooses a row of a learned
table and a "vector" passes a linear layer; both are added to the embedding of t. A "sequence" of
vectors and a sequence of "bags" become the tokens of a `Context`, which is attended to. An "image"
is laid beside x, as further channels.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.settings import at_least
from diffusion_jax.core.types import Kind, Kinds
from diffusion_jax.models.embeddings import sinusoidal
from diffusion_jax.models.kernels.attention import masked_attention

Told = tuple[tuple[str, Kind], ...]  # the conditions of a network, as a module's field
ADDED = ("index", "vector")
SEQUENCES = ("sequence", "bags")
IMAGES = ("image",)
RESERVED = ("time", "time1", "time2", "context")  # names of layers beside the conditions'


class Context(NamedTuple):
    """tokens [B, L, width] float32, 0 where they are not there; keep [B, L], 1 where they are."""

    tokens: jax.Array
    keep: jax.Array


def taken(kinds: Kinds, network: str, mechanisms: tuple[str, ...]) -> Told:
    """The conditions as a module's field.

    Raises ValueError, which names the network, for one that enters by none of the mechanisms, and
    for one that is named as a layer."""
    for name, kind in kinds.items():
        if name in RESERVED:
            raise ValueError(f"a condition cannot be named {name!r}, as a part of the network is")
        if kind.how not in mechanisms:
            known = ", ".join(mechanisms[:-1]) + " or " + mechanisms[-1]
            raise ValueError(
                f"the {network} takes conditions of the kinds {known}; {name!r} is of the kind "
                f"{kind.how!r}"
            )
    return tuple(kinds.items())


def of_kinds(kinds: Told, *mechanisms: str) -> dict[str, int]:
    """Name -> size of the conditions that enter by one of the mechanisms."""
    return {name: kind.size for name, kind in kinds if kind.how in mechanisms}


def check_told(cond: Mapping | None, kinds: Told) -> dict:
    """What is told, without the names whose value is None.

    Raises ValueError for a name that the network does not know and for a missing one. A vector may
    be missing; it counts as zeros."""
    told = {name: value for name, value in (cond or {}).items() if value is not None}
    known = dict(kinds)
    if unknown := [name for name in told if name not in known]:
        names = ", ".join(map(repr, known)) or "none"
        raise ValueError(
            f"cond has {unknown[0]!r}, which this network does not know; known: {names}"
        )
    for name, kind in kinds:
        if name not in told and kind.how != "vector":
            values = "an index [B]" if kind.how == "index" else f"of the kind {kind.how!r}"
            raise ValueError(f"cond lacks {name!r}, {values} that this network needs")
    return told


def embeddings(
    t: jax.Array, cond: Mapping | None, channels: int, width: int, kinds: Told = ()
) -> list[jax.Array]:
    """The embeddings [B, width] float32 of t [B] and of each index and vector, for a module's
    compact call.

    t becomes sinusoids [B, channels], then passes two linear layers, "time1" and "time2" (Ho et al.
    2020, appendix B). Each index [B] and each vector [B, n] has a layer of its name; a vector's is
    without bias, so that a missing vector counts as zeros (Karras et al. 2022, appendix F.2), and
    is made only where init is told one.

    Raises ValueError for a condition of another name, for a missing one and for a t that is not one
    number an example."""
    if jnp.ndim(t) != 1:
        raise ValueError(f"t must be one number an example, [B], not of shape {jnp.shape(t)}")
    told = check_told(cond, kinds)

    # bfloat16 has 8 bits: it would take most pairs of neighbouring t for one
    features = sinusoidal(t, channels)
    features = nn.silu(nn.Dense(width, dtype=jnp.float32, name="time1")(features))
    found = [nn.Dense(width, dtype=jnp.float32, name="time2")(features)]
    for name, rows in of_kinds(kinds, "index").items():
        found.append(nn.Embed(rows, width, dtype=jnp.float32, name=name)(told[name]))
    for name in of_kinds(kinds, "vector"):
        layer = nn.Dense(width, use_bias=False, dtype=jnp.float32, name=name)
        found.append(layer(told[name]) if name in told else jnp.zeros_like(found[0]))
    return found


def embed(
    t: jax.Array,
    cond: Mapping | None,
    channels: int,
    width: int,
    kinds: Told = (),
    context: Context | None = None,
) -> jax.Array:
    """The sum [B, width] of the `embeddings`, for a module's compact call.

    Of a context the mean of its tokens is added through the layer "context", without bias, so that
    no tokens add nothing."""
    embedding, *others = embeddings(t, cond, channels, width, kinds)
    for other in others:
        embedding += other
    if context is not None:
        count = jnp.maximum(context.keep.sum(axis=1, keepdims=True), 1.0)
        mean = context.tokens.sum(axis=1) / count
        embedding += nn.Dense(width, use_bias=False, dtype=jnp.float32, name="context")(mean)
    return embedding


class EncoderLayer(nn.Module):
    """A transformer's layer over tokens [B, L, C], of which `keep` [B, L] are there: attention, and
    two linear layers with GELU, each after a layer norm (Xiong et al. 2020)."""

    heads: int = 4

    @nn.compact
    def __call__(self, h, keep):
        width = h.shape[-1]
        a = nn.LayerNorm(name="norm1")(h)
        heads = lambda name: nn.DenseGeneral((self.heads, width // self.heads), name=name)(a)
        a = masked_attention(heads("query"), heads("key"), heads("value"), keep)
        h += nn.DenseGeneral(width, axis=(-2, -1), name="out")(a)
        a = nn.gelu(nn.Dense(4 * width, name="dense1")(nn.LayerNorm(name="norm2")(h)))
        return h + nn.Dense(width, name="dense2")(a)


class ContextEncoder(nn.Module):
    """All sequences of a cond as one `Context` of `width` features a token, float32.

    A "sequence" is (vectors [B, L, n], keep [B, L]) and passes a linear layer. "bags" are (rows int
    [B, L, n], keep [B, L]): a token is the sum of some rows of a learned table, over the root of
    their number; row 0 is none. Every token is told its place. Then come `depth` layers of a
    transformer over all tokens, and a layer norm."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, told: Mapping, kinds: Told) -> Context:
        tokens, keeps = [], []
        for name, size in of_kinds(kinds, *SEQUENCES).items():
            values, keep = told[name]
            keep = jnp.asarray(keep, jnp.float32)
            if jnp.issubdtype(values.dtype, jnp.integer):
                there = (values > 0)[..., None].astype(jnp.float32)
                rows = nn.Embed(size, self.width, name=name)(values) * there
                h = rows.sum(axis=2) / jnp.sqrt(jnp.maximum(there.sum(axis=2), 1.0))
            else:
                # what is not there may be anything, and changes nothing
                values = jnp.where(keep[..., None] > 0, values, 0.0)
                h = nn.Dense(self.width, name=name)(values)
            place = sinusoidal(jnp.arange(h.shape[1]), self.width) * self.width**-0.5
            tokens.append(h + place)
            keeps.append(keep)
        h, keep = jnp.concatenate(tokens, axis=1), jnp.concatenate(keeps, axis=1)
        for i in range(self.depth):
            h = EncoderLayer(name=f"layer{i}")(h, keep)
        h = nn.LayerNorm(name="norm_out")(h)
        return Context(jnp.where(keep[..., None] > 0, h, 0.0), keep)


def check_context(context: int, context_depth: int) -> None:
    """Raises ValueError for settings that no `ContextEncoder` has."""
    if context < 4 or context % 4:
        raise ValueError(f"context must be divisible by 4, not {context}")
    at_least(0, context_depth=context_depth)


def context_of(
    cond: Mapping | None, kinds: Told, width: int, depth: int = 1, name: str = "text"
) -> Context | None:
    """The context of a network whose conditions have sequences, else None; for a compact call."""
    if not of_kinds(kinds, *SEQUENCES):
        return None
    return ContextEncoder(width, depth, name=name)(check_told(cond, kinds), kinds)


def with_images(x: jax.Array, cond: Mapping | None, kinds: Told) -> jax.Array:
    """x [B, H, W, C], and each image [B, H, W, c] that the network is told as further channels."""
    told = check_told(cond, kinds)
    images = [told[name].astype(x.dtype) for name in of_kinds(kinds, *IMAGES)]
    for image in images:
        if image.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"an image that is told must be as large as x, {x.shape[1:-1]}, not "
                f"{image.shape[1:-1]}"
            )
    return jnp.concatenate([x, *images], axis=-1) if images else x
