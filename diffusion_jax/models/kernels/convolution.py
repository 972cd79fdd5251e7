"""Convolutions of images [B, H, W, C] with kernels [k, k, C, K], zeros all round."""

import jax
import jax.numpy as jnp

from diffusion_jax.models.kernels import winograd
from diffusion_jax.models.kernels.forms import bilinear_gradients, choose, in_forms


def plain(x, kernel, stride: int = 1, padding=None):
    """The convolution as written down -> [B, H / stride, W / stride, K].

    padding: rows and columns of zeros before and after; as many as keep the size unless given."""
    padding = padding or [(kernel.shape[0] // 2,) * 2, (kernel.shape[1] // 2,) * 2]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def upsample(x):
    """The image at twice its height and width, by nearest neighbours."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def plain_upsampled(x, kernel):
    """The convolution of the image at twice its height and width -> [B, 2 H, 2 W, K]."""
    return plain(upsample(x), kernel)


def convolve(x, kernel, stride: int = 1):
    """`plain` in the form that is fastest where it is lowered: on a CPU Winograd's if it pays."""
    if stride == 1 and winograd.pays(x, kernel):
        return _winograd_on_cpu(x, kernel)
    return plain(x, kernel, stride)


# The plain form where it is differentiated, value and all: in a training step Winograd's six arrays
# for one, with as many gradients, cost more in memory's time than its products save
# (docs/performance.md).
_winograd_on_cpu = in_forms(
    {"cpu": winograd.convolve, "default": plain}, {"default": plain}, bilinear_gradients(plain)
)


def upsampled_convolve(x, kernel):
    """`plain_upsampled` of a 3 x 3 kernel, with 2 x 2 products for each output pixel, not 3 x 3, in
    the form that is fastest where it is lowered.

    An even output row sees input row i - 1 once and i twice, an odd one i twice and i + 1 once; so
    do the columns."""
    return _upsampled(x, kernel)


def phases(x, kernel):
    """The CPU's: each of the four phases is a convolution of x with a 2 x 2 kernel of sums."""
    b, h, w, _ = x.shape
    rows = [(kernel[0], kernel[1] + kernel[2]), (kernel[0] + kernel[1], kernel[2])]

    def phase(i, j):
        columns = [
            jnp.stack(pair)
            for pair in ([(r[0], r[1] + r[2]), (r[0] + r[1], r[2])][j] for r in rows[i])
        ]
        return plain(x, jnp.stack(columns), padding=[(1 - i, i), (1 - j, j)])

    y = jnp.stack([jnp.stack([phase(i, 0), phase(i, 1)], axis=3) for i in range(2)], axis=2)
    return y.reshape(b, 2 * h, 2 * w, -1)


def transposed(x, kernel):
    """That of other platforms: one transposed convolution with a 4 x 4 kernel of sums, the gradient
    of one of stride 2, for which libraries have kernels."""
    for axis in (0, 1):
        first, middle, last = jnp.split(kernel, 3, axis=axis)
        kernel = jnp.concatenate([first, first + middle, middle + last, last], axis=axis)
    numbers = ("NHWC", "HWIO", "NHWC")
    padding = ((2, 2), (2, 2))
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, lhs_dilation=(2, 2), dimension_numbers=numbers
    )


UPSAMPLED = {"cpu": phases, "default": transposed}
_upsampled = in_forms(
    UPSAMPLED,
    UPSAMPLED,
    choose({name: bilinear_gradients(form) for name, form in UPSAMPLED.items()}),
)
