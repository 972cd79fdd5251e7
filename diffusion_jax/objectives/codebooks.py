"""How an autoencoder's codes are counted, moved and revived: a part of its objective's state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import quantization
from diffusion_jax.core.latents import Latents
from diffusion_jax.core.quantization import Counts
from diffusion_jax.core.types import PyTree
from diffusion_jax.objectives.adversarial import per_example

CODEBOOK = "codebook"  # of the parameters


class Codebooks(NamedTuple):
    """init: (key, params) -> state. loss: (params, state, z) -> (losses [B], report). update:
    (state, report) -> state. after: (params, state, report) -> params."""

    init: Callable[[jax.Array, PyTree], Any]
    loss: Callable[[PyTree, Any, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    update: Callable[[Any, dict[str, jax.Array]], Any]
    after: Callable[[PyTree, Any, dict[str, jax.Array]], PyTree] | None


def error(a: jax.Array, b: jax.Array) -> jax.Array:
    """The mean square of the difference, [B, ...] -> [B]."""
    return per_example(jnp.square(a - b))


def used(state: dict, decay: float, count: int) -> dict[str, jax.Array]:
    """What a log says of the codes, for every one of `count` examples."""
    sizes = state["counts"].sizes
    found = {
        "perplexity": quantization.perplexity(sizes),
        "usage": quantization.usage(sizes, decay),
    }
    return {name: jnp.full(count, value) for name, value in found.items()}


def scalar_codes(latents: Latents, decay: float) -> Codebooks:
    """Of finite scalar quantisation, whose codes are only counted."""

    def init(key, params):
        return {"counts": Counts(jnp.ones(latents.codes), jnp.zeros((latents.codes, 0)))}

    def loss(params, state, z):
        codes = quantization.fsq_index(jax.lax.stop_gradient(z), latents.levels)
        return jnp.zeros(len(z)), {"codes": codes} | used(state, decay, len(z))

    def update(state, report):
        index = report["codes"].reshape(-1)
        nothing = jnp.zeros((len(index), 0))
        return {"counts": quantization.counted(state["counts"], nothing, index, decay)}

    return Codebooks(init, loss, update, None)


def vector_codes(commitment: float, averaged: bool, decay: float, revive: float) -> Codebooks:
    """Of a codebook [K, d], which is averaged or learned by its own loss (van den Oord et al. 2017,
    eq. 3); codes of a size below `revive` are replaced by vectors of the batch."""
    stop = jax.lax.stop_gradient

    def init(key, params):
        counts = quantization.first_counts(params[CODEBOOK])
        return {"counts": counts, "revival": jax.random.key_data(key)}

    def loss(params, state, z):
        codebook = params[CODEBOOK]
        codes = quantization.nearest(stop(z), stop(codebook))
        found = commitment * error(z, stop(codebook)[codes])
        if not averaged:
            found += error(stop(z), codebook[codes])
        return found, {"z": stop(z), "codes": codes} | used(state, decay, len(z))

    def moved(state, report):
        """(the counts after the step, which codes were revived, the next key)."""
        z, index = report["z"], report["codes"].reshape(-1)
        z = z.reshape(-1, z.shape[-1])
        counts = quantization.counted(state["counts"], z, index, decay)
        drawing, following = jax.random.split(jax.random.wrap_key_data(state["revival"]))
        counts, dead = quantization.revived(counts, z, drawing, revive)
        return counts, dead, jax.random.key_data(following)

    def update(state, report):
        counts, _, following = moved(state, report)
        return {"counts": counts, "revival": following}

    def after(params, state, report):
        if CODEBOOK not in params:  # it is frozen
            return params
        counts, dead, _ = moved(state, report)
        codes = quantization.codebook_of(counts)
        if not averaged:  # a revived code's sum is its vector, its size 1
            codes = jnp.where(dead[:, None], counts.sums, params[CODEBOOK])
        return {**params, CODEBOOK: codes}

    return Codebooks(init, loss, update, after)


def codebooks(
    latents: Latents, commitment: float, averaged: bool, decay: float, revive: float
) -> Codebooks | None:
    """What the codes of such latents need; None where they are not quantised."""
    if latents.regularizer == "vq":
        return vector_codes(commitment, averaged, decay, revive)
    return scalar_codes(latents, decay) if latents.regularizer == "fsq" else None
