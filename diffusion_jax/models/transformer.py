"""The transformer's block over tokens: the one of DiT (Peebles & Xie 2023, section 3.2), and what
later papers changed of it."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import ones, xavier_uniform, zeros

from diffusion_jax.models.conditions import Context
from diffusion_jax.models.embeddings import rotated
from diffusion_jax.models.kernels.attention import Kind, attention, masked_attention
from diffusion_jax.models.layers import Dropout

NormKind = Literal["layer", "rms"]
MLPKind = Literal["gelu", "swiglu"]
EPSILON = 1e-6
XAVIER = xavier_uniform()


def linear(features: int, dtype, name: str, kernel_init=XAVIER, use_bias: bool = True):
    """A linear layer of [..., C], with DiT's initialisation. Examples and tokens are one axis in
    it, over which the kernel's gradient sums."""
    layer = nn.Dense(features, use_bias, dtype, kernel_init=kernel_init, name=name)
    return lambda x: layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], features)


class Norm(nn.Module):
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) of x [..., C], computed in
    float32. The result has the precision of x.

    With `scale` and `shift` [B, C], of x [B, N, C], (1 + scale) norm(x) + shift; without, it has
    parameters of its own: a scale and, for the layer norm, a bias."""

    kind: NormKind

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        if scale is None or shift is None:
            own = self.param("scale", ones, x.shape[-1:], jnp.float32)
            layer = self.kind == "layer"
            bias = self.param("bias", zeros, x.shape[-1:], jnp.float32) if layer else 0.0
            return normed(x, own, bias, self.kind)
        return normed(x, 1 + scale[:, None], shift[:, None], self.kind)


@functools.partial(jax.checkpoint, static_argnums=3)  # its gradient keeps the arguments alone
def normed(x, scale, bias, kind: NormKind):
    """scale norm(x) + bias in x's precision."""
    h = x.astype(jnp.float32)
    if kind == "layer":
        h -= h.mean(axis=-1, keepdims=True)
    h *= jax.lax.rsqrt(jnp.square(h).mean(axis=-1, keepdims=True) + EPSILON)
    return (h * scale + bias).astype(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head softmax attention of x [B, N, C] to itself.

    With `qk_norm` queries and keys are RMS-normed head by head (Dehghani et al. 2023, section 2);
    with `rotations` they are turned by their places."""

    heads: int
    qk_norm: bool
    dtype: jnp.dtype
    kind: Kind

    @nn.compact
    def __call__(self, x, rotations):
        b, n, c = x.shape
        qkv = linear(3 * c, self.dtype, "qkv")(x).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.qk_norm:
            q, k = Norm("rms", name="norm_q")(q), Norm("rms", name="norm_k")(k)
        if rotations is not None:
            q, k = rotated(q, rotations), rotated(k, rotations)
        a = attention(q, k, v, self.kind).reshape(b, n, c)
        return linear(c, self.dtype, "out")(a)


class CrossAttention(nn.Module):
    """Multi-head softmax attention of x [B, N, C] to a context, zero at first (PixArt-alpha, Chen
    et al. 2023)."""

    heads: int
    qk_norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, context: Context):
        c, tokens = x.shape[-1], context.tokens.astype(self.dtype)
        to_heads = lambda a: a.reshape(*a.shape[:2], self.heads, c // self.heads)
        q = to_heads(linear(c, self.dtype, "query")(x))
        k, v = (to_heads(linear(c, self.dtype, name)(tokens)) for name in ("key", "value"))
        if self.qk_norm:
            q, k = Norm("rms", name="norm_q")(q), Norm("rms", name="norm_k")(k)
        a = masked_attention(q, k, v, context.keep).reshape(x.shape)
        return linear(c, self.dtype, "out", zeros)(a)


class MLP(nn.Module):
    """Two linear layers with GELU between, of 4 C features; or SwiGLU (Shazeer 2020, eq. 6), of
    about 8/3 C, which has as many parameters."""

    kind: MLPKind
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        if self.kind == "gelu":
            h = jax.checkpoint(nn.gelu)(linear(4 * c, self.dtype, "dense1")(x))
        else:
            hidden = 8 * round(c / 3)
            gate, value = jnp.split(linear(2 * hidden, self.dtype, "dense1")(x), 2, axis=-1)
            h = nn.silu(gate) * value
        return linear(c, self.dtype, "dense2")(h)


class Block(nn.Module):
    """Attention and a multilayer perceptron, each after a norm and with a residual sum.

    With `embedding` [B, C] it is DiT's adaLN-zero block: the embedding gives the scale and shift
    after each norm and the gate of what each branch adds, all 0 at first, so that the block begins
    as the identity. With a `context`, tokens attend to it between the two."""

    heads: int
    norm: NormKind
    qk_norm: bool
    mlp: MLPKind
    dropout: float
    dtype: jnp.dtype
    attention: Kind

    @nn.compact
    def __call__(self, x, embedding, context, rotations, train: bool):
        """x [B, N, C] -> [B, N, C]."""
        shift1 = scale1 = gate1 = shift2 = scale2 = gate2 = None
        if embedding is not None:
            modulation = linear(6 * x.shape[-1], jnp.float32, "modulation", zeros)
            told = jnp.split(modulation(nn.silu(embedding)), 6, axis=-1)
            shift1, scale1, gate1, shift2, scale2, gate2 = told

        def add(x, a, gate):
            a = Dropout(self.dropout)(a, train)
            return x + (a if gate is None else gate[:, None] * a).astype(x.dtype)

        attend = SelfAttention(self.heads, self.qk_norm, self.dtype, self.attention, name="self")
        x = add(x, attend(Norm(self.norm, name="norm1")(x, scale1, shift1), rotations), gate1)
        if context is not None:
            x += CrossAttention(self.heads, self.qk_norm, self.dtype, name="cross")(x, context)
        mlp = MLP(self.mlp, self.dtype, name="mlp")
        return add(x, mlp(Norm(self.norm, name="norm2")(x, scale2, shift2)), gate2)
