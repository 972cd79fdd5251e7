"""Convolution and group norm as the U-Net uses them, with the parameters of Flax's `nn.Conv` and
`nn.GroupNorm`."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import lecun_normal, ones, zeros

from diffusion_jax.models import winograd
from diffusion_jax.models.convolution import convolve, upsampled_convolve


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
        kernel = self.param(
            "kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features)
        )
        bias = self.param("bias", zeros, (self.features,))
        x, kernel, bias = x.astype(self.dtype), kernel.astype(self.dtype), bias.astype(self.dtype)
        if self.upsampled:
            y = upsampled_convolve(x, kernel)
        elif self.stride == 1 and winograd.pays(x, kernel):
            y = winograd.convolve(x, kernel)
        else:
            y = convolve(x, kernel, self.stride)
        return y + bias


def views(x, *of_channels):
    """x [B, ..., C] three times, each in a shape of its own, beside arrays [B, C] that multiply or
    add to it.

    XLA takes equal broadcasts of the forward and the backward pass for one and keeps it in memory,
    as large as x; broadcasts of different shapes it computes where they are used."""
    b, *_, c = x.shape
    for shape in ((b, 1, -1, c), (b, -1, c), x.shape):
        yield x.reshape(shape), *(a.reshape(b, *[1] * (len(shape) - 2), c) for a in of_channels)


@jax.custom_jvp
def _affine_silu(x, factor, summand):
    (x_, factor, summand), _, _ = views(x.astype(jnp.float32), factor / 2, summand / 2)
    h = x_ * factor + summand
    return (h + h * jnp.tanh(h)).reshape(x.shape)


@_affine_silu.defjvp
def _(primals, tangents):
    (x, factor, summand), (dx, dfactor, dsummand) = (
        jax.tree.map(jnp.float32, arrays) for arrays in (primals, tangents)
    )
    halves = (a / 2 for a in (factor, summand, dfactor, dsummand))
    _, (x_, f, s, *_), (_, factor, _, dfactor, dsummand) = views(x, *halves)
    h = x_ * f + s
    t = jnp.tanh(h)
    dh = (dx * factor + x * dfactor + dsummand).reshape(h.shape)
    dg = dh + dh * t
    return _affine_silu(*primals), (dg + dg * (h - h * t)).reshape(x.shape)


def affine_silu(x, factor, summand):
    """silu(u) with u = factor x + summand, of x [B, ..., C], the others [B, C]; the backward pass
    keeps these, not u.

    It is written in h = u / 2 and t = tanh(h): silu(u) = h + h t, and its differential is dh (1 +
    t) (1 + h (1 - t)), multiplied out until no constant is left, of which XLA would make an array
    on the CPU."""
    return jax.checkpoint(_affine_silu)(x, factor, summand)


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018) in float32, of 32 groups, or of the largest power of two below that
    divides the channels.

    With `scale` and `shift` [B, C], (1 + scale) norm(x) + shift. Statistics, parameters, scale and
    shift come down to one factor and one summand for each example and channel: the image is read
    once for its moments and once for the result. With `silu`, that activation follows, in the same
    pass."""

    silu: bool = False

    @nn.compact
    def __call__(self, x, scale=None, shift=None):
        b, *space, c = x.shape
        wide = x.astype(jnp.float32)
        groups = math.gcd(32, c)
        moment = lambda a: a.reshape(b, -1, c).mean(axis=1).reshape(b, groups, -1).mean(axis=-1)
        mean = moment(wide)
        variance = jnp.maximum(moment(wide * wide) - mean * mean, 0.0)
        to_channels = lambda a: jnp.repeat(a, c // groups, axis=1)
        factor = to_channels(jax.lax.rsqrt(variance + 1e-5)) * self.param("scale", ones, (c,))
        summand = self.param("bias", zeros, (c,)) - to_channels(mean) * factor
        if scale is not None:
            factor, summand = factor * (1 + scale), summand * (1 + scale) + shift
        if self.silu:
            return affine_silu(x, factor, summand)
        per_channel = lambda a: a.reshape(b, *[1] * len(space), c)
        return wide * per_channel(factor) + per_channel(summand)
