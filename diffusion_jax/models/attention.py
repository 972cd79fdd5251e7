"""Self-attention over the positions of an image."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def group_norm(channels: int, name: str) -> nn.GroupNorm:
    """GroupNorm in float32, of 32 groups, or of the largest power of two below that divides the channels."""
    return nn.GroupNorm(num_groups=math.gcd(32, channels), epsilon=1e-5, dtype=jnp.float32, name=name)


class SelfAttention(nn.Module):
    """GroupNorm, multi-head softmax attention over H x W positions, zero-initialised projection, residual sum.

    ADM's AttentionBlock (Dhariwal & Nichol 2021, section 3). The softmax is computed in float32.
    """

    heads: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        if self.heads < 1 or c % self.heads:
            raise ValueError(f"an attention of {c} channels cannot be cut into {self.heads} heads")
        a = group_norm(c, "norm")(x).astype(self.dtype).reshape(b, h * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(a).reshape(b, h * w, 3, self.heads, c // self.heads)
        a = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        out = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        return x + out(a.reshape(b, h * w, c)).reshape(b, h, w, c)
