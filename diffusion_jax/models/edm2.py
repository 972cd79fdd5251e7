"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, config G).

Every layer keeps the magnitude of its input, the root mean square of its numbers, on expectation.
Sections and equations below are the paper's."""

import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.settings import FREE, TRAINING, above, check_dropout, inside
from diffusion_jax.core.types import Kinds, PyTree, Shape
from diffusion_jax.models import conditions
from diffusion_jax.models.kernels.attention import Kind, attention
from diffusion_jax.models.kernels.convolution import convolve, upsample
from diffusion_jax.models.layers import Dropout
from diffusion_jax.models.unet import (
    attention_factors,
    check_dtype,
    check_halvings,
    count_heads,
    downsample,
)

MECHANISMS = (*conditions.ADDED, *conditions.IMAGES)
EPSILON = 1e-4  # the least magnitude that is brought to 1


def normalize(x, axis):
    """x over its magnitude along the axes, computed in float32. EPSILON^2 stands under the root, so
    that there is a gradient at 0."""
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis, keepdims=True)
    return (x * jax.lax.rsqrt(square + EPSILON**2)).astype(x.dtype)


def pixel_norm(x):
    """Every pixel's features over their magnitude (eq. 30)."""
    return normalize(x, -1)


def mp_silu(x):
    """SiLU over 0.596, its magnitude at a normal x (eq. 81)."""
    return nn.silu(x) / 0.596


def mp_sum(a, b, t: float):
    """(1 - t) a + t b, over its magnitude where the two do not correlate (eq. 88)."""
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_concatenate(a, b, t: float):
    """a and b side by side, with the shares 1 - t and t in what follows, however many channels each
    of them has (eq. 103)."""
    n, m = a.shape[-1], b.shape[-1]
    whole = math.sqrt((n + m) / ((1 - t) ** 2 + t**2))
    parts = [whole * (1 - t) / math.sqrt(n) * a, whole * t / math.sqrt(m) * b]
    return jnp.concatenate(parts, axis=-1)


def mp_fourier(t, dim: int):
    """sqrt(2) cos(2 pi (f t + phi)) [B, dim] float32 of t [B], for dim frequencies f and phases phi
    that were drawn once and for all, f ~ N(0, 1), phi ~ U(0, 1) (eq. 75)."""
    drawn = np.random.RandomState(0)  # the one generator that NumPy promises not to change
    f, phi = drawn.standard_normal(dim), drawn.uniform(size=dim)
    turns = jnp.asarray(t, jnp.float32)[:, None] * f.astype(np.float32) + phi.astype(np.float32)
    return math.sqrt(2) * jnp.cos(2 * math.pi * turns)


def normal_kernel(key, shape, dtype=jnp.float32):
    """A kernel [..., K] of which each output's numbers have the magnitude 1."""
    return normalize(jax.random.normal(key, shape, dtype), tuple(range(len(shape) - 1)))


class MPConv(nn.Module):
    """A convolution, or a linear layer where `size` is 0, without bias, of normalised weights (eq.
    47): each output's, over the root of their number. `gain` multiplies the output."""

    features: int
    size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, gain: jax.Array | float = 1.0):
        shape = (*(self.size,) * (2 if self.size else 0), x.shape[-1], self.features)
        kernel = self.param("kernel", normal_kernel, shape, jnp.float32)
        kernel = normalize(kernel, tuple(range(len(shape) - 1)))
        kernel = (kernel * (gain / math.sqrt(math.prod(shape[:-1])))).astype(self.dtype)
        x = x.astype(self.dtype)
        return convolve(x, kernel) if self.size else x @ kernel


class CosineAttention(nn.Module):
    """Self-attention of normalised queries, keys and values (section 2.5), without the residual."""

    heads: int
    dtype: jnp.dtype
    kind: Kind

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        qkv = MPConv(3 * c, 1, self.dtype, name="qkv")(x)
        qkv = normalize(qkv.reshape(b, h * w, 3 * self.heads, c // self.heads), -1)
        q, k, v = jnp.split(qkv, 3, axis=2)
        a = attention(q, k, v, self.kind)
        return MPConv(c, 1, self.dtype, name="out")(a.reshape(x.shape))


class Block(nn.Module):
    """The encoder's or the decoder's block (figure 21): a residual branch whose middle is scaled by
    what t and the conditions say, and attention of so many heads, if any."""

    features: int
    decoder: bool
    heads: int  # 0 for no attention
    balance: tuple[float, float]  # the shares of the residual branch and of attention
    dropout: float
    dtype: jnp.dtype
    kind: Kind
    resample: str = ""  # down or up, before all else

    @nn.compact
    def __call__(self, x, embedding, train: bool):
        if self.resample:
            x = downsample(x) if self.resample == "down" else upsample(x)
        skip = MPConv(self.features, 1, self.dtype, name="skip")
        fits = x.shape[-1] == self.features
        if not self.decoder:
            x = pixel_norm(x if fits else skip(x))

        h = MPConv(self.features, 3, self.dtype, name="conv1")(mp_silu(x))
        gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
        scale = 1 + MPConv(self.features, 0, name="embedding")(embedding, gain)
        h = mp_silu(h * scale[:, None, None].astype(h.dtype))
        h = Dropout(self.dropout)(h, train)
        h = MPConv(self.features, 3, self.dtype, name="conv2")(h)

        if self.decoder and not fits:
            x = skip(x)
        x = mp_sum(x, h, self.balance[0])
        if self.heads:
            attend = CosineAttention(self.heads, self.dtype, self.kind, name="attention")
            x = mp_sum(x, attend(x), self.balance[1])
        return x


class EDM2(nn.Module):
    """Images [B, H, W, C], t [B], cond or None -> float32 [B, H, W, out_channels], 0 at first.

    The U-Net's levels, blocks and skips are ADM's, as in `unet.UNet`. No layer has a bias: x has
    a channel of ones beside it. An encoder's block ends what the one before handed on by
    pixel norm, a decoder's does not. t, EDM's log(sigma) / 4, becomes Fourier features; the sum
    with the conditions scales every block. Its gains, one a block, and that of the output begin
    at 0. Parameters, the embedding, norms and the output are float32; `dtype` is that of
    convolutions, attention and what they add up to. `remat`: the backward pass computes each
    block's inside again.

    Stored weights are kept normalised, too: `constrain` is called after every step."""

    out_channels: int
    channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention_factors: tuple[int, ...] = (4, 8)
    head_channels: int = 64
    time_scale: float = 1.0
    told_share: float = 0.5
    balance: tuple[float, float] = (0.3, 0.3)
    skip_share: float = 0.5
    dropout: float = 0.0
    kinds: conditions.Told = ()
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    attention: Kind = "auto"

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, cond: Mapping | None = None, *, train: bool = False
    ) -> jax.Array:
        last = len(self.channel_mult) - 1
        height, width = x.shape[1:3]
        check_halvings(height, width, last)
        embedding = self.embed(t, cond)
        x = conditions.with_images(x, cond, self.kinds)
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
        block_class = nn.remat(Block, static_argnums=(3,)) if self.remat else Block

        def block(h, name, level, attends=False, resample=""):
            features = self.channels * self.channel_mult[level]
            heads = count_heads(features, 1, self.head_channels) if attends else 0
            shared = (self.balance, self.dropout, self.dtype, self.attention)
            decoder = not name.startswith("down")
            made = block_class(features, decoder, heads, *shared, resample, name=name)
            return made(h, embedding, train)

        h = MPConv(self.channels, 3, self.dtype, name="conv_in")(x)
        skips = [h]
        for i in range(last + 1):
            if i > 0:
                # with the channels that it is given: the level's come with its first block
                h = block(h, f"down{i}_resample", i - 1, resample="down")
                skips.append(h)
            for j in range(self.blocks):
                h = block(h, f"down{i}_block{j}", i, 2**i in self.attention_factors)
                skips.append(h)

        h = block(h, "middle_block0", last, attends=True)
        h = block(h, "middle_block1", last)
        for i in reversed(range(last + 1)):
            if i < last:
                h = block(h, f"up{i}_resample", i + 1, resample="up")
            for j in range(self.blocks + 1):
                h = mp_concatenate(h, skips.pop(), self.skip_share)
                h = block(h, f"up{i}_block{j}", i, 2**i in self.attention_factors)

        gain = self.param("gain_out", nn.initializers.zeros, (), jnp.float32)
        return MPConv(self.out_channels, 3, name="conv_out")(h, gain)

    def embed(self, t, cond):
        """Embedding [B, width] float32 of t [B] and of the conditions, those that are added each
        through a linear layer of its name. An index is told as a one-hot vector of magnitude 1."""
        if jnp.ndim(t) != 1:
            raise ValueError(f"t must be one number an example, [B], not of shape {jnp.shape(t)}")
        told = conditions.check_told(cond, self.kinds)
        width = self.channels * max(self.channel_mult)
        features = mp_fourier(self.time_scale * jnp.asarray(t), self.channels)
        embedding = MPConv(width, 0, name="time")(features)
        entered = []
        for name, kind in self.kinds:
            if kind.how == "index":
                vector = jax.nn.one_hot(told[name], kind.size) * math.sqrt(kind.size)
            elif kind.how == "vector" and name in told:
                vector = told[name]
            else:
                continue
            entered.append(MPConv(width, 0, name=name)(vector))
        if entered:
            both = sum(entered) / math.sqrt(len(entered))
            embedding = mp_sum(embedding, both, self.told_share)
        return mp_silu(embedding)

    @staticmethod
    def constrain(params: PyTree) -> PyTree:
        """Forced weight normalisation (section 2.3, eq. 66): every kernel with each output's
        numbers brought to the magnitude 1, the norm sqrt(fan-in), whatever the optimizer made."""

        def constrained(path, a):
            kernel = path[-1].key == "kernel"
            return normalize(a, tuple(range(a.ndim - 1))) if kernel else a

        return jax.tree_util.tree_map_with_path(constrained, params)


def edm2(
    shape: Shape,
    kinds: Kinds,
    channels: int = 192,
    channel_mult: tuple[int, ...] = (1, 2, 3, 4),
    blocks: int = 3,
    attention_resolutions: tuple[int, ...] = (16, 8),
    head_channels: int = 64,
    time_scale: float = 1.0,
    told_share: float = 0.5,
    balance: float = 0.3,
    attention_balance: float = 0.3,
    skip_share: float = 0.5,
    dropout: Annotated[float, TRAINING] = 0.0,
    dtype: Annotated[str, TRAINING] = "float32",
    remat: Annotated[bool, FREE] = False,
    attention: Annotated[Kind, FREE] = "auto",
) -> EDM2:
    """EDM2's magnitude-preserving U-Net, for images of height, width and channels (Karras et al.
    2024, config G).

    Args:
      channels: channels of the first level: 128 for the paper's XS, 192 for S, 256, 320 and 384 for
        M, L and XL.
      channel_mult: a level's channels over the first's; one entry a level, at least 1.
      blocks: residual blocks a level.
      attention_resolutions: image heights, in pixels, at which there is attention.
      head_channels: channels of an attention head, at least 1.
      time_scale: the network embeds time_scale * t: 1 for the edm prediction's log(sigma) / 4.
      told_share: of the conditions beside t in the embedding, in [0, 1].
      balance: of the residual branch in a block's sum, in [0, 1].
      attention_balance: of attention in its sum, in [0, 1].
      skip_share: of the encoder's features beside the decoder's, in [0, 1].
      dropout: dropout rate in the residual blocks, at least 0 and below 1.
      dtype: precision of the computation, float32 or bfloat16; parameters stay float32.
      remat: compute each block again in the backward pass, to save memory; the results stay.
      attention: its form in bfloat16: auto, pallas or plain, as the unet's.
    """
    factors = attention_factors(shape, channel_mult, attention_resolutions)
    above(0, channels=channels, blocks=blocks, head_channels=head_channels, time_scale=time_scale)
    inside(0, 1, told_share=told_share, skip_share=skip_share)
    inside(0, 1, balance=balance, attention_balance=attention_balance)
    check_dropout(dropout)
    check_dtype(dtype)
    attended = [m for i, m in enumerate(channel_mult) if 2**i in factors]
    for multiplier in (*attended, channel_mult[-1]):  # the last level's is in the middle, always
        count_heads(multiplier * channels, 1, head_channels)
    return EDM2(
        out_channels=shape[-1],
        channels=channels,
        channel_mult=tuple(channel_mult),
        blocks=blocks,
        attention_factors=factors,
        head_channels=head_channels,
        time_scale=time_scale,
        told_share=told_share,
        balance=(balance, attention_balance),
        skip_share=skip_share,
        dropout=dropout,
        kinds=conditions.taken(kinds, "edm2", MECHANISMS),
        dtype=jnp.dtype(dtype),
        remat=remat,
        attention=attention,
    )
