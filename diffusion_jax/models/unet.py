"""The U-Net of DDPM, Improved DDPM and ADM. It knows nothing of diffusion: (x, t, labels) -> an
image of features."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.attention import SelfAttention
from diffusion_jax.models.convolution import upsample
from diffusion_jax.models.embeddings import sinusoidal
from diffusion_jax.models.layers import Conv, GroupNorm


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
            h = GroupNorm(silu=True, name="norm2")(h + e[:, None, None])
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = Conv(self.features, 3, self.dtype, kernel_init=nn.initializers.zeros, name="conv2")(h)

        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.dtype, name="skip")(x)
        return x + h


class UNet(nn.Module):
    """Images [B, H, W, C], t [B], labels [B] or None, augmentation [B, n] or None -> float32 [B, H,
    W, out_channels].

    Every level i has `blocks` residual blocks of channels * channel_mult[i] on the way down and
    blocks + 1 on the way up; between levels the image is halved, so H and W must be divisible by
    2^(levels - 1). Attention follows the residual blocks where the image has been halved to one of
    `attention_factors`: 1 is full size, 2 half, 4 a quarter ("attention_resolutions" in the papers'
    code). Whatever `dtype` is, parameters, the embedding of t, labels and augmentation, GroupNorm,
    softmax and the output are float32; `dtype` is that of convolutions, attention and what they add
    up to. `remat`: the backward pass computes every block's inside again in place of keeping it.

    `augmentation`, numbers that say what was done to an image, enters the embedding through a
    linear layer without bias (Karras et al. 2022, appendix F.2); so None is all zeros, and the
    layer is made only where init is given some."""

    out_channels: int
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    blocks: int = 2
    attention_factors: Sequence[int] = (2,)
    heads: int = 1
    head_channels: int | None = (
        None  # where given, an attention has (its channels / head_channels) heads
    )
    scale_shift: bool = True
    resample_blocks: bool = False  # residual blocks to halve and double, instead of a strided convolution and a plain one
    time_scale: float = 1.0  # the network embeds time_scale * t
    dropout: float = 0.0
    num_classes: int | None = None
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        labels: jax.Array | None = None,
        augmentation: jax.Array | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        if (labels is None) != (self.num_classes is None):
            raise ValueError("labels go with num_classes: give both or neither")
        (height, width), halvings = x.shape[1:3], len(self.channel_mult) - 1
        if height % 2**halvings or width % 2**halvings:
            raise ValueError(
                f"images of {height} x {width} cannot be halved {halvings} times, once between two levels"
            )
        # bfloat16 has 8 bits: it would take most pairs of neighbouring t for one
        dense = lambda name: nn.Dense(4 * self.channels, dtype=jnp.float32, name=name)
        embedding = dense("time2")(
            nn.silu(dense("time1")(sinusoidal(self.time_scale * t, self.channels)))
        )
        if labels is not None and self.num_classes is not None:
            embedding += nn.Embed(
                self.num_classes, 4 * self.channels, dtype=jnp.float32, name="label"
            )(labels)
        if augmentation is not None:
            embedding += nn.Dense(
                4 * self.channels, use_bias=False, dtype=jnp.float32, name="augmentation"
            )(augmentation)

        residual_class = (
            nn.remat(ResBlock, static_argnums=(3,)) if self.remat else ResBlock
        )  # `train` is no array
        attention_class = nn.remat(SelfAttention) if self.remat else SelfAttention

        def res_block(h, features, name, resample=None):
            block = residual_class(
                features, self.scale_shift, self.dropout, self.dtype, resample, name=name
            )
            return block(h, embedding, train)

        def attention(h, name):
            if self.head_channels and h.shape[-1] % self.head_channels:
                raise ValueError(
                    f"an attention of {h.shape[-1]} channels has no heads of {self.head_channels} channels"
                )
            heads = h.shape[-1] // self.head_channels if self.head_channels else self.heads
            return attention_class(heads, self.dtype, name=name)(h)

        last = len(self.channel_mult) - 1
        h = Conv(self.channels, 3, self.dtype, name="conv_in")(x)
        skips = [h]
        for i, multiplier in enumerate(self.channel_mult):
            for j in range(self.blocks):
                h = res_block(h, multiplier * self.channels, f"down{i}_block{j}")
                if 2**i in self.attention_factors:
                    h = attention(h, f"down{i}_attention{j}")
                skips.append(h)
            if i < last:
                if self.resample_blocks:
                    h = res_block(h, h.shape[-1], f"down{i}_resample", downsample)
                else:
                    h = Conv(h.shape[-1], 3, self.dtype, stride=2, name=f"down{i}_resample")(h)
                skips.append(h)

        h = res_block(h, h.shape[-1], "middle_block0")
        h = attention(h, "middle_attention")
        h = res_block(h, h.shape[-1], "middle_block1")

        for i, multiplier in reversed(list(enumerate(self.channel_mult))):
            for j in range(self.blocks + 1):
                h = res_block(
                    jnp.concatenate([h, skips.pop()], axis=-1),
                    multiplier * self.channels,
                    f"up{i}_block{j}",
                )
                if 2**i in self.attention_factors:
                    h = attention(h, f"up{i}_attention{j}")
            if i > 0:
                if self.resample_blocks:
                    h = res_block(h, h.shape[-1], f"up{i}_resample", upsample)
                else:
                    h = Conv(h.shape[-1], 3, self.dtype, upsampled=True, name=f"up{i}_resample")(h)

        h = GroupNorm(silu=True, name="norm_out")(h)
        out = Conv(
            self.out_channels, 3, jnp.float32, kernel_init=nn.initializers.zeros, name="conv_out"
        )
        return out(h).astype(jnp.float32)


MODELS = {"unet": UNet}
