"""What the three text encoders share: attention that passes over padding, and activations.

Their layers bear the names that they have in the files of Hugging Face's `transformers`, dots and
all: a parameter's path, joined by dots, is its tensor's name.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

NEVER = -1e9  # the logit of a key that is not looked at


def quick_gelu(x):
    """x sigmoid(1.702 x), which CLIP has in place of GELU (Hendrycks & Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


layer_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)
_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def known_activation(name: str) -> str:
    """An activation's name in a `config.json`; ValueError for one that ACTIVATIONS lacks."""
    if name not in ACTIVATIONS:
        raise ValueError(f"no activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return name


def padding_bias(mask):
    """mask [B, L] of ones and zeros -> [B, 1, 1, L], what is added to the logits."""
    return jnp.where(mask[:, None, None] > 0, 0.0, NEVER)


def attention(x, bias, width: int, heads: int, names: tuple[str, ...], scaled=True, biased=True):
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1) of x [B, L, C] -> [B, L, C], for a
    module's compact call.

    bias: is added to the logits [B, heads, L, L]. width: of all heads together. names: of the four
    linear layers, for queries, keys, values and the result. scaled: whether the logits are divided
    by the square root of a head's width. biased: whether the layers have a bias."""
    b, length, channels = x.shape
    linear = functools.partial(nn.Dense, use_bias=biased)
    project = lambda name: linear(width, name=name)(x).reshape(b, length, heads, width // heads)
    q, k, v = map(project, names[:3])
    scale = 1 / math.sqrt(width // heads) if scaled else 1.0
    weights = jax.nn.softmax(scale * jnp.einsum("bnhd,bmhd->bhnm", q, k) + bias, axis=-1)
    mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, v)
    return linear(channels, name=names[3])(mixed.reshape(b, length, width))
