"""BERT (Devlin et al. 2019), such as MiniLM (Wang et al. 2020)."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.models.text.layers import (
    ACTIVATIONS,
    attention,
    known_activation,
    layer_norm,
    padding_bias,
)

LAYERS = "encoder.layer."  # how the names of the layers' tensors begin
NAMES = tuple(f"attention.{name}" for name in ("self.query", "self.key", "self.value"))
NAMES += ("attention.output.dense",)


class Bert(nn.Module):
    """ids int [B, L], mask [B, L] of ones and zeros -> the last layer [B, L, width], float32.

    Section 3 of the paper, and Vaswani et al. 2017, section 3: every norm follows its residual sum.
    All tokens are of the first segment.
    """

    vocabulary: int
    positions: int
    segments: int
    width: int
    heads: int
    hidden: int
    layers: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, ids, mask):
        embed = lambda rows, name: nn.Embed(rows, self.width, name=f"embeddings.{name}_embeddings")
        x = embed(self.vocabulary, "word")(ids)
        x += embed(self.positions, "position")(jnp.arange(ids.shape[1]))
        x += embed(self.segments, "token_type")(jnp.zeros_like(ids))
        x = layer_norm(self.epsilon, name="embeddings.LayerNorm")(x)
        bias = padding_bias(mask)
        for i in range(self.layers):
            shape = (self.heads, self.hidden, self.activation, self.epsilon)
            x = Layer(*shape, name=f"{LAYERS}{i}")(x, bias)
        return x


class Layer(nn.Module):
    """Attention, then a perceptron, each with its residual sum and norm."""

    heads: int
    hidden: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, x, bias):
        width = x.shape[-1]
        a = attention(x, bias, width, self.heads, NAMES)
        x = layer_norm(self.epsilon, name="attention.output.LayerNorm")(x + a)
        h = nn.Dense(self.hidden, name="intermediate.dense")(x)
        h = nn.Dense(width, name="output.dense")(ACTIVATIONS[self.activation](h))
        return layer_norm(self.epsilon, name="output.LayerNorm")(x + h)


def from_config(config: Mapping) -> Bert:
    """The module that a `config.json` describes."""
    return Bert(
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        segments=config["type_vocab_size"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        activation=known_activation(config.get("hidden_act", "gelu")),
        epsilon=config.get("layer_norm_eps", 1e-12),
    )


def own_name(name: str) -> str:
    """A tensor's name without what models around the encoder put before it; the first files' gamma
    and beta by their present names."""
    name = name.removeprefix("bert.")
    return name.replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias")
