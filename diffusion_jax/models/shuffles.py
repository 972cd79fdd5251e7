"""Halving and doubling of an image with residual shortcuts that have no parameters (Chen et al.
2024, section 3.2: residual autoencoding)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.layers import Conv


def unshuffled(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H / 2, W / 2, 4 C]: a channel's two by two pixels, row by row, then the
    next channel's."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def shuffled(x: jax.Array) -> jax.Array:
    """[B, h, w, 4 C] -> [B, 2 h, 2 w, C], the inverse of `unshuffled`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, c // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, 2 * h, 2 * w, c // 4)


class Unshuffle(nn.Module):
    """[B, H, W, C] -> [B, H / 2, W / 2, features]: a 3 x 3 convolution's result, unshuffled, and
    the unshuffled image, averaged over groups of 4 C / features channels."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        h = unshuffled(Conv(self.features // 4, 3, self.dtype, name="conv")(x))
        short = unshuffled(x).astype(h.dtype)
        return h + short.reshape(*h.shape[:-1], self.features, -1).mean(axis=-1)


class Shuffle(nn.Module):
    """[B, h, w, c] -> [B, 2 h, 2 w, features]: a 3 x 3 convolution's result, shuffled, and the
    image, every channel 4 features / c times, shuffled."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        h = Conv(4 * self.features, 3, self.dtype, name="conv")(x)
        short = jnp.repeat(x, 4 * self.features // x.shape[-1], axis=-1)
        return shuffled(h + short.astype(h.dtype))


def check_groups(channel_mult: tuple[int, ...], channels: int) -> None:
    """Raises ValueError where the channels of two levels cannot be grouped."""
    for upper, lower in zip(channel_mult, channel_mult[1:], strict=False):
        if 4 * upper % lower or lower * channels % 4:
            raise ValueError(
                f"shortcuts need levels whose channels are 4 times the next one's over a whole "
                f"number, and a multiple of 4, not {upper * channels} and {lower * channels}"
            )
