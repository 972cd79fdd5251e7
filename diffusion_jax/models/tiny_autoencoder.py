"""The tiny autoencoder TAESD (madebyollin/taesd), distilled from Stable Diffusion's: images [B, H,
W, C] to latents [B, H / f, W / f, c] and back, by convolutions and ReLU alone."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.latents import Latents
from diffusion_jax.core.settings import above
from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.models.layers import Conv
from diffusion_jax.models.unet import check_halvings

REACH = 3.0  # latents are decoded as REACH tanh(z / REACH)


class Block(nn.Module):
    """Three 3 x 3 convolutions with ReLU between, and a skip; ReLU of the sum."""

    features: int

    @nn.compact
    def __call__(self, x):
        h = x
        for i in range(3):
            h = Conv(self.features, 3, jnp.float32, name=f"conv{i}")(nn.relu(h) if i else h)
        return nn.relu(x + h)


class Encoder(nn.Module):
    """[B, H, W, C] -> [B, H / f, W / f, out_channels], f = 2^(levels - 1). blocks: a level."""

    out_channels: int
    channels: int
    blocks: tuple[int, ...]

    @nn.compact
    def __call__(self, h):
        for i, count in enumerate(self.blocks):
            halved = {"strides": 2, "use_bias": False} if i else {}
            h = nn.Conv(self.channels, (3, 3), padding=1, name=f"level{i}", **halved)(h)
            for j in range(count):
                h = Block(self.channels, name=f"level{i}_block{j}")(h)
        return Conv(self.out_channels, 3, jnp.float32, name="conv_out")(h)


class Decoder(nn.Module):
    """[B, h, w, c] -> [B, f h, f w, out_channels] in [-1, 1]. blocks: of each level, the lowest
    resolution first. last: besides, what the last convolution is given."""

    out_channels: int
    channels: int
    blocks: tuple[int, ...]

    @nn.compact
    def __call__(self, z, last: bool = False):
        h = REACH * jnp.tanh(z / REACH)
        h = nn.relu(Conv(self.channels, 3, jnp.float32, name="conv_in")(h))
        final = len(self.blocks) - 1
        for i, count in enumerate(self.blocks):
            for j in range(count):
                h = Block(self.channels, name=f"level{i}_block{j}")(h)
            if i < final:
                h = h.repeat(2, axis=1).repeat(2, axis=2)
                h = nn.Conv(self.channels, (3, 3), padding=1, use_bias=False, name=f"level{i}")(h)
        image = 2.0 * Conv(self.out_channels, 3, jnp.float32, name="conv_out")(h) - 1.0
        return (image, h) if last else image


class TinyAutoencoder(nn.Module):
    """Images to `latent` channels at 1 / f of their height and width, and back. Called as a
    network, it returns the reconstruction; t and cond mean nothing to it."""

    out_channels: int
    latent: int = 4
    channels: int = 64
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    def setup(self):
        self.encoder = Encoder(self.latent, self.channels, self.encoder_blocks)
        self.decoder = Decoder(self.out_channels, self.channels, self.decoder_blocks)

    @property
    def moments(self) -> int:
        return self.latent

    @property
    def latents(self) -> Latents:
        """What its latents are, for an objective."""
        return Latents("none", self.latent)

    def encode(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] -> float32 [B, H / f, W / f, latent]."""
        return self.encoder(0.5 * (x + 1.0))

    def quantize(self, z: jax.Array) -> jax.Array:
        """z itself: these latents are points."""
        return z

    def decode(self, z: jax.Array, last: bool = False) -> Any:
        """Latents [B, h, w, latent] -> images float32 [B, f h, f w, out_channels], about in
        [-1, 1]; last: (images, what the last convolution was given)."""
        return self.decoder(z, last)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | None = None,
        cond: Mapping | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        return self.decode(self.encode(x))


def tiny_autoencoder(
    shape: Shape,
    kinds: Kinds,
    latent: int = 4,
    channels: int = 64,
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3),
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1),
) -> TinyAutoencoder:
    """The tiny autoencoder TAESD, of convolutions and ReLU, whose latents are no distributions.

    Args:
      latent: channels of the latents.
      channels: of every level.
      encoder_blocks: blocks of each level; images are halved between two levels.
      decoder_blocks: the same of the way back, the lowest resolution first.
    """
    above(0, latent=latent, channels=channels)
    if len(shape) != 3:
        raise ValueError(f"shape must be height, width and channels, not {shape}")
    for name, blocks in (("encoder_blocks", encoder_blocks), ("decoder_blocks", decoder_blocks)):
        if not blocks or min(blocks) < 1:
            raise ValueError(f"{name} needs one number of at least 1 a level, not {blocks}")
    if len(encoder_blocks) != len(decoder_blocks):
        raise ValueError("encoder_blocks and decoder_blocks must be of as many levels")
    check_halvings(shape[0], shape[1], len(encoder_blocks) - 1)
    if kinds:
        raise ValueError(f"an autoencoder is told nothing, not {', '.join(kinds)}")
    return TinyAutoencoder(
        shape[-1], latent, channels, tuple(encoder_blocks), tuple(decoder_blocks)
    )
