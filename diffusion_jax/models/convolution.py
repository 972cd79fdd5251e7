"""Convolutions as written down."""

import jax
import jax.numpy as jnp


def convolve(x, kernel, stride: int = 1, padding=None):
    """[B, H, W, C] with a kernel [k, k, C, K] -> [B, H / stride, W / stride, K]; zeros all round
    unless `padding` is given."""
    padding = padding or [(kernel.shape[0] // 2,) * 2, (kernel.shape[1] // 2,) * 2]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def upsample(x):
    """Nearest-neighbour, to twice the height and width."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def upsampled_convolve(x, kernel):
    """convolve(upsample(x), kernel) of a 3 x 3 kernel, from x itself: 2 x 2 products for each
    output pixel, not 3 x 3.

    An even output row sees input row i - 1 once and i twice, an odd one i twice and i + 1 once; so
    do the columns. Each of the four phases is thus a convolution of x with a 2 x 2 kernel of sums.
    """
    b, h, w, _ = x.shape
    rows = [(kernel[0], kernel[1] + kernel[2]), (kernel[0] + kernel[1], kernel[2])]

    def phase(i, j):
        columns = [
            jnp.stack(pair)
            for pair in ([(r[0], r[1] + r[2]), (r[0] + r[1], r[2])][j] for r in rows[i])
        ]
        return convolve(x, jnp.stack(columns), padding=[(1 - i, i), (1 - j, j)])

    y = jnp.stack([jnp.stack([phase(i, 0), phase(i, 1)], axis=3) for i in range(2)], axis=2)
    return y.reshape(b, 2 * h, 2 * w, -1)
