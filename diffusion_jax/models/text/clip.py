"""CLIP's text tower (Radford et al. 2021)."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.text.layers import (
    ACTIVATIONS,
    NEVER,
    attention,
    known_activation,
    layer_norm,
    padding_bias,
)

LAYERS = "encoder.layers."  # how the names of the layers' tensors begin
NAMES = tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
# A file that holds both towers states what differs from these, ViT-B/32's.
DEFAULTS: dict[str, Any] = dict(vocab_size=49408, max_position_embeddings=77, hidden_size=512)
DEFAULTS |= dict(num_attention_heads=8, intermediate_size=2048, num_hidden_layers=12)
DEFAULTS |= dict(hidden_act="quick_gelu", layer_norm_eps=1e-5)


class Clip(nn.Module):
    """ids int [B, L], mask [B, L] of ones and zeros -> the last layer, normed, [B, L, width],
    float32.

    Section 2.4 of the paper, after GPT-2 (Radford et al. 2019): norms lie before attention and
    perceptron, and a token looks at those before it and at itself alone.
    """

    vocabulary: int
    positions: int
    width: int
    heads: int
    hidden: int
    layers: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, ids, mask):
        length = ids.shape[1]
        embed = lambda rows, name: nn.Embed(rows, self.width, name=f"embeddings.{name}_embedding")
        x = embed(self.vocabulary, "token")(ids)
        x += embed(self.positions, "position")(jnp.arange(length))
        later = np.triu(np.full((length, length), NEVER, np.float32), 1)
        bias = jnp.minimum(padding_bias(mask), later)
        for i in range(self.layers):
            shape = (self.heads, self.hidden, self.activation, self.epsilon)
            x = Layer(*shape, name=f"{LAYERS}{i}")(x, bias)
        return layer_norm(self.epsilon, name="final_layer_norm")(x)


class Layer(nn.Module):
    """Attention, then a perceptron, each of the normed x and added to x."""

    heads: int
    hidden: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, x, bias):
        width = x.shape[-1]
        a = layer_norm(self.epsilon, name="layer_norm1")(x)
        x = x + attention(a, bias, width, self.heads, NAMES)
        h = layer_norm(self.epsilon, name="layer_norm2")(x)
        h = ACTIVATIONS[self.activation](nn.Dense(self.hidden, name="mlp.fc1")(h))
        return x + nn.Dense(width, name="mlp.fc2")(h)


def from_config(config: Mapping) -> Clip:
    """The module that a `config.json` describes, of the text tower or of both."""
    config = {**DEFAULTS, **(config.get("text_config") or config)}
    return Clip(
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        activation=known_activation(config["hidden_act"]),
        epsilon=config["layer_norm_eps"],
    )


def own_name(name: str) -> str:
    """A tensor's name without what stands before it where a file holds both towers."""
    return name.removeprefix("text_model.")
