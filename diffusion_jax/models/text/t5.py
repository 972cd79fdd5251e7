"""T5's encoder (Raffel et al. 2020), and that of its version 1.1 and mT5 (Xue et al. 2021)."""

import math
from collections.abc import Mapping

import flax.linen as nn
import numpy as np

from diffusion_jax.models.text.layers import ACTIVATIONS, attention, known_activation, padding_bias

LAYERS = "encoder.block."  # how the names of the layers' tensors begin
ATTENTION = "layer.0.SelfAttention"
NAMES = tuple(f"{ATTENTION}.{name}" for name in "qkvo")


class T5(nn.Module):
    """ids int [B, L], mask [B, L] of ones and zeros -> the last layer, normed, [B, L, width],
    float32.

    Section 2.1 of the paper: norms without a mean lie before attention and perceptron, no layer has
    a bias, and where a token stands is told by a number added to the logits, which all layers
    share. The logits are not divided by anything.
    """

    vocabulary: int
    width: int
    heads: int
    head_width: int
    hidden: int
    layers: int
    activation: str
    gated: bool  # the perceptron of version 1.1 (Shazeer 2020)
    buckets: int
    farthest: int
    epsilon: float

    positions = None  # it takes any length

    @nn.compact
    def __call__(self, ids, mask):
        x = nn.Embed(self.vocabulary, self.width, name="encoder.embed_tokens")(ids)
        at = np.arange(ids.shape[1])
        bucket = buckets(at - at[:, None], self.buckets, self.farthest)
        name = f"{LAYERS}0.{ATTENTION}.relative_attention_bias"
        bias = nn.Embed(self.buckets, self.heads, name=name)(bucket).transpose(2, 0, 1)
        bias = bias + padding_bias(mask)
        for i in range(self.layers):
            shape = (self.heads, self.head_width, self.hidden, self.activation, self.gated)
            x = Block(*shape, self.epsilon, name=f"{LAYERS}{i}")(x, bias)
        return nn.RMSNorm(self.epsilon, name="encoder.final_layer_norm")(x)


class Block(nn.Module):
    """Attention, then a perceptron, each of the normed x and added to x."""

    heads: int
    head_width: int
    hidden: int
    activation: str
    gated: bool
    epsilon: float

    @nn.compact
    def __call__(self, x, bias):
        a = nn.RMSNorm(self.epsilon, name="layer.0.layer_norm")(x)
        inner = self.heads * self.head_width
        x = x + attention(a, bias, inner, self.heads, NAMES, scaled=False, biased=False)
        h = nn.RMSNorm(self.epsilon, name="layer.1.layer_norm")(x)
        linear = lambda size, name: nn.Dense(
            size, use_bias=False, name=f"layer.1.DenseReluDense.{name}"
        )
        act = ACTIVATIONS[self.activation]
        if self.gated:
            h = act(linear(self.hidden, "wi_0")(h)) * linear(self.hidden, "wi_1")(h)
        else:
            h = act(linear(self.hidden, "wi")(h))
        return x + linear(x.shape[-1], "wo")(h)


def buckets(offset: np.ndarray, count: int, farthest: int) -> np.ndarray:
    """The bucket, in [0, count), of a key's position less the query's; an int of the same shape.

    Half of the buckets are for keys behind the query. Of each half, the first half are one offset
    each, the others grow as its logarithm up to `farthest`, and the last is for all beyond."""
    half = count // 2
    single = half // 2
    distance = np.abs(offset)
    ratio = np.maximum(distance, single).astype(np.float32) / np.float32(single)
    far = np.log(ratio) / np.float32(math.log(farthest / single)) * (half - single)
    far = np.minimum(single + far.astype(np.int32), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < single, distance, far)


def from_config(config: Mapping) -> T5:
    """The module that a `config.json` describes."""
    gate, _, name = config.get("feed_forward_proj", "relu").rpartition("-")
    gated = gate == "gated"
    return T5(
        vocabulary=config["vocab_size"],
        width=config["d_model"],
        heads=config["num_heads"],
        head_width=config["d_kv"],
        hidden=config["d_ff"],
        layers=config["num_layers"],
        activation=known_activation("gelu_new" if gated and name == "gelu" else name),
        gated=gated,
        buckets=config["relative_attention_num_buckets"],
        farthest=config.get("relative_attention_max_distance", 128),
        epsilon=config.get("layer_norm_epsilon", 1e-6),
    )


def own_name(name: str) -> str:
    """A tensor's name; the embedding that encoder and decoder share is the encoder's."""
    return "encoder.embed_tokens.weight" if name == "shared.weight" else name
