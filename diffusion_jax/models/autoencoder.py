"""The convolutional autoencoder of latent diffusion (Rombach et al. 2022, appendix G). It knows
nothing of diffusion: images [B, H, W, C] to latents [B, H / f, W / f, c] and back."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core import quantization
from diffusion_jax.core.latents import REGULARIZERS, Latents, Regularizer
from diffusion_jax.core.settings import TRAINING, above, at_least, one_of
from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.models.critic import PatchCritic
from diffusion_jax.models.layers import Conv, GroupNorm, SelfAttention
from diffusion_jax.models.shuffles import Shuffle, Unshuffle, check_groups
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
    shortcuts: bool = False

    @nn.compact
    def __call__(self, x):
        last = len(self.channel_mult) - 1
        h = Conv(self.channels, 3, self.dtype, name="conv_in")(x)
        for i, multiplier in enumerate(self.channel_mult):
            for j in range(self.blocks):
                h = Block(multiplier * self.channels, self.dtype, name=f"down{i}_block{j}")(h)
            if i < last and self.shortcuts:
                following = self.channel_mult[i + 1] * self.channels
                h = Unshuffle(following, self.dtype, name=f"down{i}")(h)
            elif i < last:
                # zeros to the right and below alone, as the published weights have it
                ends = ((0, 1), (0, 1))
                halve = nn.Conv(h.shape[-1], (3, 3), 2, ends, dtype=self.dtype, name=f"down{i}")
                h = halve(h)
        h = middle(h, self.attention, self.dtype)
        h = GroupNorm(silu=True, epsilon=EPSILON, name="norm_out")(h)
        return Conv(self.out_channels, 3, self.dtype, name="conv_out")(h)


class Decoder(nn.Module):
    """[B, h, w, c] -> images [B, f h, f w, out_channels]: `blocks` + 1 blocks a level, and nearest
    neighbours with a convolution between two levels. last: besides, what the last convolution, of
    3 x 3, is given."""

    out_channels: int
    channels: int
    channel_mult: tuple[int, ...]
    blocks: int
    attention: bool
    dtype: jnp.dtype
    shortcuts: bool = False

    @nn.compact
    def __call__(self, z, last: bool = False):
        h = Conv(self.channel_mult[-1] * self.channels, 3, self.dtype, name="conv_in")(z)
        h = middle(h, self.attention, self.dtype)
        for i, multiplier in reversed(list(enumerate(self.channel_mult))):
            for j in range(self.blocks + 1):
                h = Block(multiplier * self.channels, self.dtype, name=f"up{i}_block{j}")(h)
            if i > 0 and self.shortcuts:
                following = self.channel_mult[i - 1] * self.channels
                h = Shuffle(following, self.dtype, name=f"up{i}")(h)
            elif i > 0:
                h = Conv(h.shape[-1], 3, self.dtype, upsampled=True, name=f"up{i}")(h)
        h = GroupNorm(silu=True, epsilon=EPSILON, name="norm_out")(h)
        image = Conv(self.out_channels, 3, self.dtype, name="conv_out")(h)
        return (image, h) if last else image


class Autoencoder(nn.Module):
    """Images to `latent` channels at 1 / f of their height and width, f = 2^(levels - 1), and back.

    `moments`: channels of what `encode` returns, twice `latent` where it is the mean and the
    logarithm of the variance of a normal distribution, else `latent`. `decode` takes latents as
    they are, and quantises them where the regularizer does. Called as a network, it returns the
    reconstruction from the mean; t and cond mean nothing to it. The critic, where there is one, has
    the parameters "critic", and no part in all this but `judge`."""

    out_channels: int
    latent: int = 4
    moments: int = 8
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attention: bool = True  # in the middle
    dtype: jnp.dtype = jnp.float32
    regularizer: Regularizer = "kl"
    codes: int = 0  # of the codebook of vq
    levels: tuple[int, ...] = ()  # a channel, of fsq
    shortcuts: bool = False  # round what halves and doubles
    critic_channels: int = 0  # of the first layer; 0 for no critic
    critic_layers: int = 3
    critic_norm: bool = True

    @property
    def latents(self) -> Latents:
        """What its latents are, for an objective."""
        codes = math.prod(self.levels) if self.regularizer == "fsq" else self.codes
        critic = self.critic_channels > 0
        return Latents(self.regularizer, self.latent, codes, self.levels, critic)

    def setup(self):
        of = (self.channels, self.channel_mult, self.blocks, self.attention, self.dtype)
        self.encoder = Encoder(self.moments, *of, self.shortcuts)
        self.decoder = Decoder(self.out_channels, *of, self.shortcuts)
        self.quant_conv = Conv(self.moments, 1, self.dtype)
        self.post_quant_conv = Conv(self.latent, 1, self.dtype)
        if self.regularizer == "vq":
            self.codebook = self.param("codebook", first_codes, (self.codes, self.latent))
        if self.critic_channels:
            of_critic = (self.critic_channels, self.critic_layers, self.critic_norm, self.dtype)
            self.critic = PatchCritic(*of_critic)

    def encode(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] -> float32 [B, H / f, W / f, moments]."""
        return self.quant_conv(self.encoder(x)).astype(jnp.float32)

    def quantize(self, z: jax.Array) -> jax.Array:
        """Latents [B, h, w, latent] -> their codes, of the same shape, with the gradient of z; z
        itself where the latents are not quantised."""
        if self.regularizer == "vq":
            codes = self.codebook[quantization.nearest(z, self.codebook)]
            return quantization.straight_through(z, codes)
        return quantization.fsq(z, self.levels) if self.regularizer == "fsq" else z

    def decode(self, z: jax.Array, last: bool = False) -> Any:
        """Latents [B, h, w, latent], quantised or not -> images float32 [B, f h, f w,
        out_channels], about in [-1, 1]; last: (images, what the last convolution was given)."""
        found = self.decoder(self.post_quant_conv(self.quantize(z)), last)
        return jax.tree.map(lambda a: a.astype(jnp.float32), found)

    def judge(self, x: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] -> float32 [B, h, w, 1], high where the critic takes a
        patch for real."""
        return self.critic(x)

    def __call__(
        self,
        x: jax.Array,
        t: jax.Array | None = None,
        cond: Mapping | None = None,
        *,
        train: bool = False,
    ) -> jax.Array:
        if self.is_initializing() and self.critic_channels:
            self.judge(x)
        return self.decode(self.encode(x)[..., : self.latent])


def first_codes(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Evenly spread over [-1 / K, 1 / K]."""
    return jax.random.uniform(key, shape, jnp.float32, -1.0 / shape[0], 1.0 / shape[0])


def autoencoder(
    shape: Shape,
    kinds: Kinds,
    latent: int = 4,
    channels: int = 128,
    channel_mult: tuple[int, ...] = (1, 2, 4, 4),
    blocks: int = 2,
    attention: bool = True,
    dtype: Annotated[str, TRAINING] = "float32",
    regularizer: Regularizer = "kl",
    codebook: int = 8192,
    levels: tuple[int, ...] = (8, 5, 5, 5),
    critic: int = 0,
    critic_layers: int = 3,
    critic_norm: bool = True,
    shortcuts: bool = False,
) -> Autoencoder:
    """The autoencoder of latent diffusion, whose latents are normal distributions, points or codes
    (Rombach et al. 2022).

    Args:
      latent: channels of the latents.
      channels: of the first level.
      channel_mult: a level's channels over the first's; images are halved between two levels.
      blocks: residual blocks a level, one more on the way back.
      attention: whether there is attention at the lowest resolution.
      dtype: precision of the computation, float32 or bfloat16; parameters stay float32.
      regularizer: kl, normal distributions; vq, codes of a codebook; fsq, numbers rounded to levels
        (Mentzer et al. 2023); none, points.
      codebook: of vq: how many codes.
      levels: of fsq: how many a channel, each at least 2.
      critic: channels of the first layer of a critic of patches, in training; 0 for none.
      critic_layers: of the critic: how often it halves an image, at least 1.
      critic_norm: whether the critic has group norms.
      shortcuts: whether halving and doubling are pixels unshuffled and shuffled, beside a
        convolution (Chen et al. 2024).
    """
    above(0, latent=latent, channels=channels, blocks=blocks, codebook=codebook)
    at_least(0, critic=critic)
    at_least(1, critic_layers=critic_layers)
    one_of(REGULARIZERS, regularizer=regularizer)
    if len(shape) != 3:
        raise ValueError(f"shape must be height, width and channels, not {shape}")
    if not channel_mult or min(channel_mult) < 1:
        raise ValueError(f"channel_mult needs one number of at least 1 a level, not {channel_mult}")
    check_halvings(shape[0], shape[1], len(channel_mult) - 1)
    check_dtype(dtype)
    if kinds:
        raise ValueError(f"an autoencoder is told nothing, not {', '.join(kinds)}")
    mult = tuple(channel_mult)
    if shortcuts:
        check_groups(mult, channels)
    levels = tuple(levels) if regularizer == "fsq" else ()
    if regularizer == "fsq" and (len(levels) != latent or min(levels) < 2):
        raise ValueError(
            f"levels needs one number of at least 2 for each of the latent={latent} channels, "
            f"not {levels}"
        )
    return Autoencoder(
        shape[-1],
        latent,
        2 * latent if regularizer == "kl" else latent,
        channels,
        mult,
        blocks,
        attention,
        jnp.dtype(dtype),
        regularizer,
        codebook if regularizer == "vq" else 0,
        levels,
        shortcuts,
        critic,
        critic_layers,
        critic_norm,
    )
