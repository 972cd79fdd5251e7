"""A residual multilayer perceptron, for data of any shape: points, vectors, sets of them."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.settings import above
from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.models import conditions


class ResidualBlock(nn.Module):
    """Norm, SiLU and a linear layer, twice, with the embedding added between; and a skip."""

    @nn.compact
    def __call__(self, h, embedding):
        width = h.shape[-1]
        inner = nn.Dense(width, name="dense1")(nn.silu(nn.LayerNorm(name="norm1")(h)))
        inner += nn.Dense(width, name="embedding")(nn.silu(embedding))
        return h + nn.Dense(width, name="dense2")(nn.silu(nn.LayerNorm(name="norm2")(inner)))


class MLP(nn.Module):
    """x [B, ..., C], t [B], cond or None -> float32 [B, ..., out_channels].

    An example is flattened: its axes mean nothing to the network. What t and the conditions
    (`conditions.embed`) say enters every block. The output is zero at initialisation."""

    out_channels: int
    width: int = 128
    depth: int = 4
    time_scale: float = 1.0
    kinds: conditions.Told = ()

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping | None = None, *, train: bool = False
    ) -> jax.Array:
        t = self.time_scale * jnp.asarray(t)
        embedding = conditions.embed(t, cond, self.width, self.width, self.kinds)
        h = nn.Dense(self.width, name="dense_in")(x.astype(jnp.float32).reshape(len(x), -1))
        for i in range(self.depth):
            h = ResidualBlock(name=f"block{i}")(h, embedding)
        h = nn.silu(nn.LayerNorm(name="norm_out")(h))
        shape = (*x.shape[1:-1], self.out_channels)
        out = nn.Dense(math.prod(shape), kernel_init=nn.initializers.zeros, name="dense_out")(h)
        return out.reshape(len(x), *shape)


def mlp(
    shape: Shape,
    kinds: Kinds,
    width: int = 128,
    depth: int = 4,
    time_scale: float = 1.0,
    learned_variance: bool = False,
) -> MLP:
    """A residual multilayer perceptron over the flattened example, of any shape.

    Args:
      width: features of the hidden layers, at least 1.
      depth: residual blocks, at least 1.
      time_scale: the network embeds time_scale * t: 1000 for a continuous t in [0, 1].
      learned_variance: twice the output channels, the second half for the variance.
    """
    if not shape or min(shape) < 1:
        raise ValueError(f"shape must have at least one axis, and none of 0, not {shape}")
    above(0, width=width, depth=depth, time_scale=time_scale)
    return MLP(
        out_channels=shape[-1] * (2 if learned_variance else 1),
        width=width,
        depth=depth,
        time_scale=time_scale,
        kinds=conditions.taken(kinds, "mlp", conditions.ADDED),
    )
