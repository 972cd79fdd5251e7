"""Convolution, group norm, dropout and self-attention as the U-Net uses them.

The first two have the parameters of Flax's `nn.Conv` and `nn.GroupNorm`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal, ones, zeros

from diffusion_jax.models.kernels.attention import Kind, attention, masked_attention
from diffusion_jax.models.kernels.convolution import convolve, upsampled_convolve
from diffusion_jax.models.kernels.norm import EPSILON, group_norm


class Conv(nn.Module):
    """A square convolution with zeros round the image, computed in `dtype`.

    With `upsampled`, of the image at twice its height and width by nearest neighbours.
    """

    features: int
    size: int
    dtype: jnp.dtype
    stride: int = 1
    upsampled: bool = False
    kernel_init: nn.initializers.Initializer = lecun_normal()

    @nn.compact
    def __call__(self, x):
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,), jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.upsampled:
            return upsampled_convolve(x, kernel) + bias
        return convolve(x, kernel, self.stride) + bias


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018), computed in float32, of 32 groups, or of the largest power of two
    below that divides the channels. The result has the precision of x.

    With `scale` and `shift` [B, C], (1 + scale) norm(x) + shift. With `silu`, that activation
    follows."""

    silu: bool = False
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        c = x.shape[-1]
        own_scale = self.param("scale", ones, (c,), jnp.float32)
        bias = self.param("bias", zeros, (c,), jnp.float32)
        return group_norm(x, own_scale, bias, scale, shift, self.silu, self.epsilon)


class Dropout(nn.Module):
    """Zeros in place of a share `rate` of the numbers [..., C], the others over the share that is
    left (Srivastava et al. 2014, section 4). The rate is taken to 2^-16: a word of the generator,
    which costs more than all else here, is drawn for two numbers."""

    rate: float

    @nn.compact
    def __call__(self, x, train: bool):
        dropped = round(self.rate * 2**16)
        if not train or dropped == 0:
            return x
        *others, c = x.shape
        words = jax.random.bits(self.make_rng("dropout"), (*others, -(-c // 2)), jnp.uint32)
        halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*others, -1)[..., :c]
        return jnp.where(halves >= dropped, x / (1 - dropped / 2**16), jnp.zeros((), x.dtype))


class SelfAttention(nn.Module):
    """GroupNorm, multi-head softmax attention over H x W positions, zero-initialised projection,
    residual sum.

    ADM's AttentionBlock (Dhariwal & Nichol 2021, section 3). The softmax is computed in float32.
    """

    heads: int = 1
    dtype: jnp.dtype = jnp.float32
    kind: Kind = "auto"  # of the attention
    epsilon: float = EPSILON

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        if self.heads < 1 or c % self.heads:
            raise ValueError(f"an attention of {c} channels cannot be cut into {self.heads} heads")
        # Images and positions are one axis, over which the gradients of qkv and out sum.
        a = GroupNorm(epsilon=self.epsilon, name="norm")(x).astype(self.dtype).reshape(b * h * w, c)
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(a)
        qkv = qkv.reshape(b, h * w, 3 * self.heads, c // self.heads)
        q, k, v = jnp.split(qkv, 3, axis=2)
        a = attention(q, k, v, self.kind)
        out = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        return x + out(a.reshape(b * h * w, c)).reshape(b, h, w, c)


class ContextBlock(nn.Module):
    """Attention to a context's tokens and a gated linear layer, then a zero-initialised projection
    and a residual sum, so that at first it changes nothing.

    The transformer block of latent diffusion (Rombach et al. 2022, appendix E.2.1), whose
    self-attention is the U-Net's own, before this."""

    heads: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, tokens, keep):
        """x [B, H, W, C], tokens [B, L, D], keep [B, L] -> [B, H, W, C]."""
        b, height, width, c = x.shape
        shape = (self.heads, c // self.heads)
        dense = lambda features, name: nn.DenseGeneral(features, dtype=self.dtype, name=name)
        norm = lambda name: nn.LayerNorm(dtype=self.dtype, name=name)
        h = GroupNorm(name="norm")(x).astype(self.dtype).reshape(b, height * width, c)
        h = dense(c, "proj_in")(h)
        tokens = tokens.astype(self.dtype)
        q = dense(shape, "query")(norm("norm1")(h))
        a = masked_attention(q, dense(shape, "key")(tokens), dense(shape, "value")(tokens), keep)
        h += dense(c, "out")(a.reshape(h.shape))
        values, gates = jnp.split(dense(8 * c, "gated")(norm("norm2")(h)), 2, axis=-1)
        h += dense(c, "dense")(values * nn.gelu(gates))
        out = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="proj_out")
        return x + out(h).reshape(x.shape)
