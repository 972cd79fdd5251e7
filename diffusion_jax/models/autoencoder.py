"""The convolutional autoencoder of latent diffusion (Rombach et al. 2022, appendix G). It knows
nothing of diffusion: images [B, H, W, C] to latents [B, H / f, W / f, c] and back."""

from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.settings import TRAINING, above
from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.models.layers import Conv, GroupNorm, SelfAttention
from diffusion_jax.models.unet import check_dtype, check_halvings

EPSILON = 1e-6  # of its group norms


class Block(nn.Module):
    """Norm, SiLU and a 3 x 3 convolution, twice, and a skip."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        h = x
        for i in (1, 2):
            h = GroupNorm(silu=True, epsilon=EPSILON, name=f"norm{i}")(h)
            h = Conv(self.features, 3, self.dtype, name=f"conv{i}")(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.dtype, name="skip")(x)
        return x + h


def middle(h, attention: bool, dtype: jnp.dtype):
    """Two blocks at the lowest resolution, with attention between; for within a module."""
    h = Block(h.shape[-1], dtype, name="middle_block0")(h)
    if attention:
        h = SelfAttention(1, dtype, epsilon=EPSILON, name="middle_attention")(h)
    return Block(h.shape[-1], dtype, name="middle_block1")(h)


class Encoder(nn.Module):
    """Images [B, H, W, C] -> [B, H / f, W / f, out_channels]: `blocks` blocks a level, and a
    convolution that halves between two levels."""

    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks: int
    attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        last = len(self.channel_mult) - 1
        h = Conv(self.channels, 3, self.dtype, name="conv_in")(x)
        for i, multiplier in enumerate(self.channel_mult):
            for j in range(self.blocks):
                h = Block(multiplier * self.channels, self.dtype, name=f"down{i}_block{j}")(h)
            if i < last:
                # zeros to the right and below alone, as the published weights have it
                ends = ((0, 1), (0, 1))
                halve = nn.Conv(h.shape[-1], (3, 3), 2, ends, dtype=self.dtype, name=f"down{i}")
                h = halve(h)
        h = middle(h, self.attention, self.dtype)
        h = GroupNorm(silu=True, epsilon=EPSILON, name="norm_out")(h)
        return Conv(self.out_channels, 3, self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """[B, h, w, c] -> images [B, f h, f w, out_channels]: `blocks` + 1 blocks a level, and nearest
    neighbours with a convolution between two levels."""

    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks: int
    attention: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z):
        h = Conv(self.channel_mult[-1] * self.channels, 3, self.dtype, name="conv_in")(z)
        h = middle(h, self.attention, self.dtype)
        for i, multiplier in reversed(list(enumerate(self.channel_mult))):
            for j in range(self.blocks + 1):
                h = Block(multiplier * self.channels, self.dtype, name=f"up{i}_block{j}")(h)
            if i > 0:
                h = Conv(h.shape[-1], 3, self.dtype, upsampled=True, name=f"up{i}")(h)
        h = GroupNorm(silu=True, epsilon=EPSILON, name="norm_out")(h)
        return Conv(self.out_channels, 3, self.dtype, name="conv_out")(h)


class Autoencoder(nn.Module):
    """Images to `latent` channels at 1 / f of their height and width, f = 2^(levels - 1), and back.

    `moments`: channels of what `encode` returns, twice `latent` where it is the mean and the
    logarithm of the variance of a normal distribution, else `latent`. Called as a network, it
    returns the reconstruction from the mean; t and cond mean nothing to it."""

    out_channels: int
    latent: int = 4
    moments: int = 8
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: bool = True  # in the middle
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        of = (self.channels, self.channel_mult, self.blocks, self.attention, self.dtype)
        self.encoder, self.decoder = Encoder(self.moments, *of), Decoder(self.out_channels, *of)
        self.quant_conv = Conv(self.moments, 1, self.dtype)
        self.post_quant_conv = Conv(self.latent, 1, self.dtype)

    def encode(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] -> float32 [B, H / f, W / f, moments]."""
        return self.quant_conv(self.encoder(x)).astype(jnp.float32)

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents [B, h, w, latent] -> images float32 [B, f h, f w, out_channels], about in
        [-1, 1]."""
        return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | None = None,
        cond: Mapping | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        return self.decode(self.encode(x)[..., : self.latent])


def autoencoder(
    shape: Shape,
    kinds: Kinds,
    latent: int = 4,
    channels: int = 128,
    channel_mult: tuple[int, ...] = (1, 2, 4, 4),
    blocks: int = 2,
    attention: bool = True,
    dtype: Annotated[str, TRAINING] = "float32",
) -> Autoencoder:
    """The autoencoder of latent diffusion, whose latents are normal distributions (Rombach et al.
    2022).

    Args:
      latent: channels of the latents.
      channels: of the first level.
      channel_mult: a level's channels over the first's; images are halved between two levels.
      blocks: residual blocks a level, one more on the way back.
      attention: whether there is attention at the lowest resolution.
      dtype: precision of the computation, float32 or bfloat16; parameters stay float32.
    """
    above(0, latent=latent, channels=channels, blocks=blocks)
    if len(shape) != 3:
        raise ValueError(f"shape must be height, width and channels, not {shape}")
    if not channel_mult or min(channel_mult) < 1:
        raise ValueError(f"channel_mult needs one number of at least 1 a level, not {channel_mult}")
    check_halvings(shape[0], shape[1], len(channel_mult) - 1)
    check_dtype(dtype)
    if kinds:
        raise ValueError(f"an autoencoder is told nothing, not {', '.join(kinds)}")
    mult = tuple(channel_mult)
    return Autoencoder(
        shape[-1], latent, 2 * latent, channels, mult, blocks, attention, jnp.dtype(dtype)
    )
