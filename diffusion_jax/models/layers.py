"""Convolution and group norm as the U-Net uses them, with the parameters of Flax's `nn.Conv` and `nn.GroupNorm`."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal, ones, zeros

from diffusion_jax.models import winograd


def convolve(x, kernel, stride: int = 1, padding=None):
    """[B, H, W, C] with a kernel [k, k, C, K] -> [B, H / stride, W / stride, K]; zeros all round unless `padding` is given."""
    padding = padding or [(kernel.shape[0] // 2,) * 2, (kernel.shape[1] // 2,) * 2]
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


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
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", zeros, (self.features,))
        x, kernel, bias = x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)
        if self.upsampled:
            y = upsampled_convolve(x, kernel)
        elif self.stride == 1 and winograd.pays(x, kernel):
            y = winograd.convolve(x, kernel)
        else:
            y = convolve(x, kernel, self.stride)
        return y + bias


def upsample(x):
    """Nearest-neighbour, to twice the height and width."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def upsampled_convolve(x, kernel):
    """convolve(upsample(x), kernel) of a 3 x 3 kernel, from x itself: 2 x 2 products for each output pixel, not 3 x 3.

    An even output row sees input row i - 1 once and i twice, an odd one i twice and i + 1 once; so do the columns. Each of
    the four phases is thus a convolution of x with a 2 x 2 kernel of sums.
    """
    b, h, w, _ = x.shape
    rows = [(kernel[0], kernel[1] + kernel[2]), (kernel[0] + kernel[1], kernel[2])]

    def phase(i, j):
        columns = [jnp.stack(pair) for pair in ([(r[0], r[1] + r[2]), (r[0] + r[1], r[2])][j] for r in rows[i])]
        return convolve(x, jnp.stack(columns), padding=[(1 - i, i), (1 - j, j)])

    y = jnp.stack([jnp.stack([phase(i, 0), phase(i, 1)], axis=3) for i in range(2)], axis=2)
    return y.reshape(b, 2 * h, 2 * w, -1)


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018) in float32, of 32 groups, or of the largest power of two below that divides the channels.

    With `scale` and `shift` [B, C], (1 + scale) norm(x) + shift. Statistics, parameters, scale and shift come down to one
    factor and one summand for each example and channel: the image is read once for its moments and once for the result.
    """

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        b, *space, c = x.shape
        x = x.astype(jnp.float32)
        groups = math.gcd(32, c)
        moment = lambda a: a.reshape(b, -1, c).mean(axis=1).reshape(b, groups, -1).mean(axis=-1)
        mean = moment(x)
        variance = jnp.maximum(moment(x * x) - mean * mean, 0.0)
        to_channels = lambda a: jnp.repeat(a, c // groups, axis=1)
        factor = to_channels(jax.lax.rsqrt(variance + 1e-5)) * self.param("scale", ones, (c,))
        summand = self.param("bias", zeros, (c,)) - to_channels(mean) * factor
        if scale is not None:
            factor, summand = factor * (1 + scale), summand * (1 + scale) + shift
        wide = lambda a: a.reshape(b, *[1] * len(space), c)
        return x * wide(factor) + wide(summand)
