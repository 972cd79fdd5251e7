"""Group norm (Wu & He 2018) of x [B, ..., C], and the SiLU that follows it.

Statistics and arithmetic are of float32, the result is of x's precision.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.models.kernels.forms import choose, in_forms

EPSILON = 1e-5


def groups(channels: int) -> int:
    """32, or the largest power of two below that divides the channels."""
    return math.gcd(32, channels)


def plain(x, scale, bias, by=None, to=None, silu: bool = False, epsilon: float = EPSILON):
    """Each group's numbers less their mean over their deviation, times `scale`, plus `bias` [C].

    With `by` and `to` [B, C], (1 + by) of that plus to. With `silu`, that activation follows."""
    b, *space, c = x.shape
    of_group = x.astype(jnp.float32).reshape(b, -1, groups(c), c // groups(c))
    mean = of_group.mean(axis=(1, 3), keepdims=True)
    variance = of_group.var(axis=(1, 3), keepdims=True)
    y = ((of_group - mean) / jnp.sqrt(variance + epsilon)).reshape(b, -1, c) * scale + bias
    if by is not None and to is not None:
        y = y * (1 + by[:, None]) + to[:, None]
    return (jax.nn.silu(y) if silu else y).reshape(x.shape).astype(x.dtype)


def group_norm(x, scale, bias, by=None, to=None, silu: bool = False, epsilon: float = EPSILON):
    """`plain` in two passes over x forward, one for its moments and one for the result, and two
    passes over x and the result's gradient backward. The arguments alone are kept."""
    moved = () if by is None else (by, to)
    return chosen(silu, epsilon)(x, scale, bias, *moved)


@functools.cache
def chosen(silu: bool, epsilon: float = EPSILON) -> Callable:
    """`group_norm` of its static arguments."""
    of = functools.partial(gradients, epsilon=epsilon)
    if silu:
        activations = {"cpu": silu_by_tanh, "default": jax.nn.silu}
        kept = functools.partial(of, through_silu_by_tanh, 0.5, False)
        again = functools.partial(of, through_silu, 1.0, True)
    else:
        activations = {"default": lambda u: u}
        kept, again = (functools.partial(of, through_none, 1.0, a) for a in (False, True))
    forms = {name: two_passes(one, epsilon) for name, one in activations.items()}
    return in_forms(forms, forms, choose({"cpu": kept, "default": again}))


def silu_by_tanh(u):
    """The CPU's: with h = u / 2, h + h tanh(h)."""
    h = u / 2
    return h + h * jnp.tanh(h)


def two_passes(activation: Callable, epsilon: float = EPSILON) -> Callable:
    """(x, scale, bias, [by, to]) -> activation(factor x + summand)."""

    def form(x, *given):
        factor, summand = affine(moments(x), *given, epsilon=epsilon)
        wide, factor, summand = views(x, factor, summand)[0]
        u = wide.astype(jnp.float32) * factor + summand
        return activation(u).reshape(x.shape).astype(x.dtype)

    return form


def moments(x):
    """Means over the positions of x and of its square [B, C]."""
    b, *_, c = x.shape
    wide = x.astype(jnp.float32).reshape(b, -1, c)
    return wide.mean(axis=1), (wide * wide).mean(axis=1)


def affine(moments, scale, bias, by=None, to=None, epsilon: float = EPSILON):
    """Factor and summand [B, C] to which statistics, scale, bias, by and to come down."""
    b, c = moments[0].shape
    mean, square = (a.reshape(b, groups(c), -1).mean(axis=-1) for a in moments)
    to_channels = lambda a: jnp.repeat(a, c // groups(c), axis=1)
    variance = jnp.maximum(square - mean * mean, 0.0)
    factor = to_channels(jax.lax.rsqrt(variance + epsilon)) * scale
    summand = bias - to_channels(mean) * factor
    return (factor, summand) if by is None else (factor * (1 + by), summand * (1 + by) + to)


def gradients(through: Callable, unit: float, again: bool, arguments, dy, epsilon: float = EPSILON):
    """Those of (x, scale, bias, [by, to]): a pass for two sums over the positions [B, C], a pass
    for x.

    through: (dy, unit u) -> the gradient of u = factor x + summand, times 1 / unit. again: the
    second pass computes it from x and dy again, which is less to move than to keep it."""
    x, *given = arguments
    (factor, summand), back = jax.vjp(
        functools.partial(affine, epsilon=epsilon), moments(x), *given
    )
    _, (wide, f, s), (_, at_x, at_1) = views(x, factor * unit, summand * unit)
    du = through(dy.reshape(wide.shape).astype(jnp.float32), wide.astype(jnp.float32) * f + s)
    both = sum_together if again else lambda *arrays: [a.sum(axis=1) for a in arrays]
    (of_mean, of_square), *others = back(
        tuple(a * unit for a in both(du * wide.astype(jnp.float32), du))
    )
    if again:
        # what waits for the sums is not taken for what they were computed from
        x, _ = jax.lax.optimization_barrier((x, of_mean))
        du = through(dy.astype(jnp.float32), x.astype(jnp.float32) * at_x + at_1)
    count = x.size // (x.shape[0] * x.shape[-1])
    _, _, (_, a, c) = views(x, 2 * of_square / count, of_mean / count)
    dx = du.reshape(x.shape) * at_x + x.astype(jnp.float32) * a + c
    return dx.astype(x.dtype), *others


def through_none(dy, u):
    return dy


def through_silu(dy, u):
    """dy silu'(u); one pass of XLA's GPU compiler takes it with the sums, but not the form by
    tanh."""
    g = jax.nn.sigmoid(u)
    return dy * g * (1 + u * (1 - g))


def through_silu_by_tanh(dy, h):
    """The CPU's, for h = u / 2: dy (1 + t) (1 + h (1 - t)) of t = tanh(h), twice dy silu'(u).

    It is multiplied out until no constant is left, of which XLA would make an array."""
    t = jnp.tanh(h)
    dy = dy + dy * t
    return dy + dy * (h - h * t)


def sum_together(*arrays):
    """The sums of arrays [B, N, C] over N, in one operation, of which XLA's GPU compiler makes one
    pass with all that the arrays are computed by."""
    add = lambda one, other: tuple(a + b for a, b in zip(one, other, strict=True))
    return jax.lax.reduce(arrays, (jnp.float32(0),) * len(arrays), add, (1,))


def views(x, *of_channels):
    """x [B, ..., C] three times, each in a shape of its own, beside arrays [B, C] that multiply or
    add to it.

    XLA takes equal broadcasts of the forward and the backward pass for one and keeps it in memory,
    as large as x; broadcasts of different shapes it computes where they are used."""
    b, *_, c = x.shape
    shapes = ((b, 1, -1, c), (b, -1, c), x.shape)
    return [
        (x.reshape(s), *(a.reshape(b, *[1] * (len(s) - 2), c) for a in of_channels)) for s in shapes
    ]
