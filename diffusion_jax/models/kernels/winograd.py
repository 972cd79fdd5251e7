"""3 x 3 convolution with half the multiplications, by Winograd's minimal filtering F(4, 3) along
the height.

Four neighbouring rows of the output need 4 x 3 rows of products as written down; six are enough
(Winograd 1980; Lavin & Gray 2016, section 4.1 and the matrices below, for the points 0, 1, -1, 2,
-2 and infinity). Along the width the convolution stays as it is, so that the sums before and after
run over whole rows of memory. In exact arithmetic the result is the same; in float32 it is off by a
few 1e-6 of the largest output."""

import jax
import jax.numpy as jnp

# One row for each of the six products, but of OUTPUT one for each of the four rows that come out.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def pays(x, kernel) -> bool:
    """Whether `convolve` is faster than the plain form on a CPU: in float32, of images that are not
    small and have many channels."""
    if x.dtype != jnp.float32 or kernel.shape[:2] != (3, 3):
        return False
    return x.shape[1] % 4 == 0 and x.shape[1] >= 16 and min(kernel.shape[2:]) >= 32


def convolve(x, kernel):
    """[B, H, W, C] with a kernel [3, 3, C, K] and zeros all round -> [B, H, W, K]; H divisible by
    4."""
    b, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    inputs = combine(INPUT, [padded[:, i : i + h - 3 : 4] for i in range(6)])
    kernels = combine(KERNEL, [kernel[i : i + 1] for i in range(3)])
    products = [along_width(v, u) for v, u in zip(inputs, kernels, strict=True)]
    return jnp.stack(combine(OUTPUT, products), axis=2).reshape(b, h, w, -1)


def along_width(x, kernel):
    """[B, H, W, C] with a kernel [1, 3, C, K], a row of zeros to the left and the right."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(0, 0), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def combine(matrix, terms) -> list:
    """The products of a small constant matrix with a list of arrays, its zeros and ones left
    out."""

    def row(factors):
        scaled = [
            term if f == 1 else -term if f == -1 else f * term
            for f, term in zip(factors, terms, strict=True)
            if f
        ]
        return sum(scaled[1:], scaled[0])

    return [row(factors) for factors in matrix]
