"""The U-Net of DDPM, Improved DDPM and ADM. It knows nothing of diffusion: (x, t, cond) -> an image
of features."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.settings import FREE, TRAINING, above, check_dropout
from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.models import conditions
from diffusion_jax.models.kernels.attention import Kind
from diffusion_jax.models.kernels.convolution import upsample
from diffusion_jax.models.layers import ContextBlock, Conv, Dropout, GroupNorm, SelfAttention
from diffusion_jax.models.reuse import Reuse, check_blocks

MECHANISMS = (*conditions.ADDED, *conditions.SEQUENCES, *conditions.IMAGES)


def downsample(x):
    """The mean of each 2 x 2 square."""
    return nn.avg_pool(x, (2, 2), (2, 2))


class ResBlock(nn.Module):
    """Two 3 x 3 convolutions with the embedding between them, and a skip (Ho et al. 2020, appendix
    B; ADM, section 3).

    The embedding enters as (1 + scale) h + shift after the second norm where `scale_shift`, else as
    h + embedding before it. `resample`, None or `upsample` or `downsample`, makes it ADM's
    (BigGAN's) up- or downsampling block."""

    features: int
    scale_shift: bool
    dropout: float
    dtype: jnp.dtype
    resample: Callable | None = None

    @nn.compact
    def __call__(self, x, embedding, train: bool):
        h = GroupNorm(silu=True, name="norm1")(x)
        if self.resample is downsample:
            h = downsample(h)
        if self.resample is not None:
            x = self.resample(x)
        h = Conv(self.features, 3, self.dtype, upsampled=self.resample is upsample, name="conv1")(h)

        width = self.features * (2 if self.scale_shift else 1)
        e = nn.Dense(width, dtype=jnp.float32, name="embedding")(nn.silu(embedding))
        if self.scale_shift:
            h = GroupNorm(silu=True, name="norm2")(h, *jnp.split(e, 2, axis=-1))
        else:
            h = GroupNorm(silu=True, name="norm2")(h + e[:, None, None].astype(h.dtype))
        h = Dropout(self.dropout)(h, train)
        h = Conv(self.features, 3, self.dtype, kernel_init=nn.initializers.zeros, name="conv2")(h)

        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.dtype, name="skip")(x)
        return x + h


def check_halvings(height: int, width: int, halvings: int) -> None:
    """Raises ValueError for images that cannot be halved so often."""
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(
            f"images of {height} x {width} cannot be halved {halvings} times, once between two "
            "levels"
        )


def attention_factors(
    shape: Shape, channel_mult: tuple[int, ...], resolutions: tuple[int, ...]
) -> tuple[int, ...]:
    """How often the image's height is that of each resolution with attention.

    Raises ValueError where the shape is no image's, the levels are none that it can have, or a
    resolution is none of theirs."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be height, width and channels, not {shape}")
    if len(channel_mult) < 1 or min(channel_mult) < 1:
        raise ValueError(f"channel_mult needs one number of at least 1 a level, not {channel_mult}")
    height, width, _ = shape
    heights = [height // 2**i for i in range(len(channel_mult))]
    for resolution in resolutions:
        if resolution not in heights:
            raise ValueError(
                f"attention_resolutions has {resolution}, but the levels have heights {heights}"
            )
    check_halvings(height, width, len(channel_mult) - 1)
    return tuple(height // resolution for resolution in resolutions)


def count_heads(channels: int, heads: int, head_channels: int) -> int:
    """Heads of an attention: `heads`, or of `head_channels` each where that is not 0.

    Raises ValueError where the channels cannot be cut so."""
    if head_channels and channels % head_channels:
        raise ValueError(
            f"an attention of {channels} channels has no heads of {head_channels} channels"
        )
    if not head_channels and (heads < 1 or channels % heads):
        raise ValueError(f"an attention of {channels} channels cannot be cut into {heads} heads")
    return channels // head_channels if head_channels else heads


class UNet(nn.Module):
    """Images [B, H, W, C], t [B], cond or None -> float32 [B, H, W, out_channels].

    Every level i has `blocks` residual blocks of channels * channel_mult[i] on the way down and
    blocks + 1 on the way up; between levels the image is halved, so H and W must be divisible by
    2^(levels - 1). Attention follows the residual blocks where the image has been halved to one of
    `attention_factors`: 1 is full size, 2 half, 4 a quarter ("attention_resolutions" in the papers'
    code). What t and the conditions (`conditions.embed`) say enters every residual block. Whatever
    `dtype` is, parameters, that embedding, the arithmetic of GroupNorm and softmax, and the output
    are float32; `dtype` is that of convolutions, attention and what they add up to. `remat`: the
    backward pass computes every block's inside again in place of keeping it. With `reuse` the
    result is (output, deep features), see `Reuse`: what enters the last blocks on the way up."""

    out_channels: int
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention_factors: tuple[int, ...] = (2,)
    heads: int = 1
    head_channels: int = 0  # of an attention, which then has (its channels / head_channels) heads
    scale_shift: bool = True
    resample_blocks: bool = False  # halve and double by residual blocks, not by convolutions
    time_scale: float = 1.0  # the network embeds time_scale * t
    dropout: float = 0.0
    kinds: conditions.Told = ()  # the conditions and how they enter
    context: int = 256  # features of a token, where a condition is a sequence
    context_depth: int = 1
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    attention: Kind = "auto"  # its form, where one is fused

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        cond: Mapping | None = None,
        *,
        train: bool = False,
        reuse: Reuse | None = None,
    ) -> Any:
        height, width = x.shape[1:3]
        check_halvings(height, width, len(self.channel_mult) - 1)
        t = self.time_scale * jnp.asarray(t)
        context = conditions.context_of(cond, self.kinds, self.context, self.context_depth)
        embedding = conditions.embed(t, cond, self.channels, 4 * self.channels, self.kinds, context)
        x = conditions.with_images(x, cond, self.kinds)

        # `train` is no array
        residual_class = nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        attention_class = nn.remat(SelfAttention) if self.remat else SelfAttention
        context_class = nn.remat(ContextBlock) if self.remat else ContextBlock

        def res_block(h, features, name, resample=None):
            block = residual_class(
                features, self.scale_shift, self.dropout, self.dtype, resample, name=name
            )
            return block(h, embedding, train)

        def attention(h, name):
            heads = count_heads(h.shape[-1], self.heads, self.head_channels)
            h = attention_class(heads, self.dtype, self.attention, name=name)(h)
            if context is None:
                return h
            return context_class(heads, self.dtype, name=f"{name}_context")(h, *context)

        # the number of the first level's block on the way up that the deep features enter
        entry, given = -1, None if reuse is None else reuse.deep
        reused, deep = given is not None, None
        if reuse is not None:
            check_blocks(reuse.blocks, self.blocks)
            entry = self.blocks - reuse.blocks
        last = len(self.channel_mult) - 1
        h = Conv(self.channels, 3, self.dtype, name="conv_in")(x)
        skips = [h]
        for i, multiplier in enumerate(self.channel_mult[: 1 if reused else None]):
            for j in range(self.blocks - entry if reused else self.blocks):
                h = res_block(h, multiplier * self.channels, f"down{i}_block{j}")
                if 2**i in self.attention_factors:
                    h = attention(h, f"down{i}_attention{j}")
                skips.append(h)
            if i < last and not reused:
                if self.resample_blocks:
                    h = res_block(h, h.shape[-1], f"down{i}_resample", downsample)
                else:
                    h = Conv(h.shape[-1], 3, self.dtype, stride=2, name=f"down{i}_resample")(h)
                skips.append(h)

        if not reused:
            h = res_block(h, h.shape[-1], "middle_block0")
            h = attention(h, "middle_attention")
            h = res_block(h, h.shape[-1], "middle_block1")

        for i, multiplier in reversed(list(enumerate(self.channel_mult))):
            for j in range(self.blocks + 1):
                if reused and (i > 0 or j < entry):
                    continue
                if i == 0 and j == entry:
                    deep = h = h if given is None else given
                h = res_block(
                    jnp.concatenate([h, skips.pop()], axis=-1),
                    multiplier * self.channels,
                    f"up{i}_block{j}",
                )
                if 2**i in self.attention_factors:
                    h = attention(h, f"up{i}_attention{j}")
            if i > 0 and not reused:
                if self.resample_blocks:
                    h = res_block(h, h.shape[-1], f"up{i}_resample", upsample)
                else:
                    h = Conv(h.shape[-1], 3, self.dtype, upsampled=True, name=f"up{i}_resample")(h)

        h = GroupNorm(silu=True, name="norm_out")(h.astype(jnp.float32))
        out = Conv(
            self.out_channels, 3, jnp.float32, kernel_init=nn.initializers.zeros, name="conv_out"
        )
        output = out(h).astype(jnp.float32)
        return output if reuse is None else (output, deep)


def unet(
    shape: Shape,
    kinds: Kinds,
    channels: int = 128,
    channel_mult: tuple[int, ...] = (1, 2, 2, 2),
    blocks: int = 2,
    attention_resolutions: tuple[int, ...] = (16,),
    heads: int = 1,
    head_channels: int = 0,
    scale_shift: bool = True,
    resample_blocks: bool = False,
    learned_variance: bool = False,
    time_scale: float = 1.0,
    dropout: Annotated[float, TRAINING] = 0.0,
    dtype: Annotated[str, TRAINING] = "float32",
    remat: Annotated[bool, FREE] = False,
    attention: Annotated[Kind, FREE] = "auto",
    context: int = 256,
    context_depth: int = 1,
) -> UNet:
    """The U-Net of DDPM, Improved DDPM and ADM, for images of height, width and channels (Ho et al.
    2020; Nichol & Dhariwal 2021; Dhariwal & Nichol 2021).

    Args:
      channels: channels of the first level.
      channel_mult: a level's channels over the first's; one entry a level, at least 1.
      blocks: residual blocks a level.
      attention_resolutions: image heights, in pixels, at which there is attention.
      heads: attention heads.
      head_channels: channels of an attention head; 0 takes `heads` heads instead.
      scale_shift: the embedding scales and shifts after the norm; False: it is added before.
      resample_blocks: halve and double by residual blocks; False: by convolutions.
      learned_variance: twice the output channels, the second half for the variance.
      time_scale: the network embeds time_scale * t: 1000 for a continuous t in [0, 1], 1000 / T for
        Improved DDPM's weights.
      dropout: dropout rate in the residual blocks, at least 0 and below 1.
      dtype: precision of the computation, float32 or bfloat16; parameters stay float32.
      remat: compute each block again in the backward pass, to save memory; the results stay.
      attention: its form in bfloat16: auto, cuDNN's on NVIDIA's GPUs; pallas, Pallas's on these,
        for where cuDNN fails, and on TPUs, where it takes the lengths; plain, the formula, as
        everywhere else.
      context: features of a token of conditions that are sequences, such as text; divisible by 4.
      context_depth: layers of a transformer over these tokens before they are attended to.
    """
    factors = attention_factors(shape, channel_mult, attention_resolutions)
    above(0, channels=channels, blocks=blocks, heads=heads, time_scale=time_scale)
    conditions.check_context(context, context_depth)
    if head_channels < 0:
        raise ValueError(f"head_channels must be at least 0, not {head_channels}")
    check_dropout(dropout)
    check_dtype(dtype)
    attended = [m for i, m in enumerate(channel_mult) if 2**i in factors]
    for multiplier in (*attended, channel_mult[-1]):  # the last level's is in the middle, always
        count_heads(multiplier * channels, heads, head_channels)
    return UNet(
        out_channels=shape[-1] * (2 if learned_variance else 1),
        channels=channels,
        channel_mult=tuple(channel_mult),
        blocks=blocks,
        attention_factors=factors,
        heads=heads,
        head_channels=head_channels,
        scale_shift=scale_shift,
        resample_blocks=resample_blocks,
        time_scale=time_scale,
        dropout=dropout,
        kinds=conditions.taken(kinds, "unet", MECHANISMS),
        context=context,
        context_depth=context_depth,
        dtype=jnp.dtype(dtype),
        remat=remat,
        attention=attention,
    )


def check_dtype(dtype: str) -> None:
    """Raises ValueError for a precision other than float32 and bfloat16."""
    if dtype == "float16":
        raise ValueError(
            "dtype has no 'float16': its range, 6e-8 to 65,504, loses gradients unless the loss is "
            "scaled; use bfloat16, which has float32's range, or float32 on a GPU that has no "
            "bfloat16, as a T4"
        )
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, not {dtype!r}")
