"""Group norm (Wu & He 2018) of x [B, ..., C], and the SiLU that follows it."""

import math

import jax
import jax.numpy as jnp

EPSILON = 1e-5


def groups(channels: int) -> int:
    """32, or the largest power of two below that divides the channels."""
    return math.gcd(32, channels)


def plain(x, scale, bias, by=None, to=None, silu: bool = False):
    """Each group's numbers less their mean over their deviation, times `scale`, plus `bias` [C].

    With `by` and `to` [B, C], (1 + by) of that plus to. With `silu`, that activation follows. All
    of it is computed in float32."""
    b, *space, c = x.shape
    of_group = x.astype(jnp.float32).reshape(b, -1, groups(c), c // groups(c))
    mean = of_group.mean(axis=(1, 3), keepdims=True)
    variance = of_group.var(axis=(1, 3), keepdims=True)
    y = ((of_group - mean) / jnp.sqrt(variance + EPSILON)).reshape(b, -1, c) * scale + bias
    if by is not None and to is not None:
        y = y * (1 + by[:, None]) + to[:, None]
    return (jax.nn.silu(y) if silu else y).reshape(b, *space, c)


def group_norm(x, scale, bias, by=None, to=None, silu: bool = False):
    """`plain` in two passes over x: one for its moments, one for the result.

    Statistics, scale, bias, by and to come down to one factor and one summand for each example and
    channel. The form pays on every platform."""
    b, *space, c = x.shape
    wide = x.astype(jnp.float32)

    def moment(a):
        return a.reshape(b, -1, c).mean(axis=1).reshape(b, groups(c), -1).mean(axis=-1)

    def to_channels(a):
        return jnp.repeat(a, c // groups(c), axis=1)

    mean = moment(wide)
    variance = jnp.maximum(moment(wide * wide) - mean * mean, 0.0)
    factor = to_channels(jax.lax.rsqrt(variance + EPSILON)) * scale
    summand = bias - to_channels(mean) * factor
    if by is not None:
        factor, summand = factor * (1 + by), summand * (1 + by) + to
    if silu:
        return affine_silu(x, factor, summand)
    return affine(wide, factor, summand)


def affine(x, factor, summand):
    """factor x + summand, of x [B, ..., C], the others [B, C]."""
    b, *space, c = x.shape
    return x * factor.reshape(b, *[1] * len(space), c) + summand.reshape(b, *[1] * len(space), c)


def plain_affine_silu(x, factor, summand):
    """silu(factor x + summand), of x [B, ..., C], the others [B, C], in float32."""
    return jax.nn.silu(affine(x.astype(jnp.float32), factor, summand))


def affine_silu(x, factor, summand):
    """`plain_affine_silu` whose backward pass keeps its arguments alone."""
    factor, summand = factor.astype(jnp.float32), summand.astype(jnp.float32)
    return jax.checkpoint(_affine_silu)(x, factor, summand)


@jax.custom_jvp
def _affine_silu(x, factor, summand):
    return jax.lax.platform_dependent(
        x, factor, summand, cpu=affine_silu_by_tanh, default=plain_affine_silu
    )


@_affine_silu.defjvp
def _(primals, tangents):
    return _affine_silu(*primals), affine_silu_tangent(primals, tangents)


def affine_silu_by_tanh(x, factor, summand):
    """The CPU's: with h = u / 2 and t = tanh(h), silu(u) = h + h t."""
    (x_, factor, summand), _, _ = views(x.astype(jnp.float32), factor / 2, summand / 2)
    h = x_ * factor + summand
    return (h + h * jnp.tanh(h)).reshape(x.shape)


def affine_silu_tangent(primals, tangents):
    """The differential of silu(u), dh (1 + t) (1 + h (1 - t)) of h = u / 2 and t = tanh(h).

    It is multiplied out until no constant is left, of which XLA would make an array on the CPU.
    Other platforms take the same form: it has fewer operations than the derivative of the plain
    one."""
    (x, factor, summand), (dx, dfactor, dsummand) = (
        jax.tree.map(jnp.float32, arrays) for arrays in (primals, tangents)
    )
    halves = (a / 2 for a in (factor, summand, dfactor, dsummand))
    _, (x_, f, s, *_), (_, factor, _, dfactor, dsummand) = views(x, *halves)
    h = x_ * f + s
    t = jnp.tanh(h)
    dh = (dx * factor + x * dfactor + dsummand).reshape(h.shape)
    dg = dh + dh * t
    return (dg + dg * (h - h * t)).reshape(x.shape)


def views(x, *of_channels):
    """x [B, ..., C] three times, each in a shape of its own, beside arrays [B, C] that multiply or
    add to it.

    XLA takes equal broadcasts of the forward and the backward pass for one and keeps it in memory,
    as large as x; broadcasts of different shapes it computes where they are used."""
    b, *_, c = x.shape
    for shape in ((b, 1, -1, c), (b, -1, c), x.shape):
        yield x.reshape(shape), *(a.reshape(b, *[1] * (len(shape) - 2), c) for a in of_channels)
