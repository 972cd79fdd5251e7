"""FLOPs of a function, counted in its jaxpr: the matrix products and convolutions, which are all
but all of a network's."""

import math
from typing import NamedTuple

import numpy as np
from jax.extend.core import jaxprs_in_params


class Count(NamedTuple):
    """flops: a multiplication and an addition are two. rolled: whether a loop is left for the
    compiler, as XLA counts once."""

    flops: float
    rolled: bool


def count(jaxpr) -> Count:
    """Of a (closed) jaxpr: a loop's body as often as it runs, of branches the dearest; a `while` of
    unknown length once.

    Products with a convolution's padding, or with the zeros between dilated elements, are left out,
    as XLA does. Attention's forward products count once more in its gradient, which fused kernels
    compute again and XLA's CPU does not."""
    flops, rolled = 0.0, False
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            flops += dot_flops(equation)
        elif name == "conv_general_dilated":
            flops += conv_flops(equation)
        inner = [count(sub) for sub in jaxprs_in_params(params)]
        if not inner:
            continue
        times = params["length"] if name == "scan" else 1
        flops += times * (max if name == "cond" else sum)(one.flops for one in inner)
        rolled |= any(one.rolled for one in inner)
        if name == "while" or (name == "scan" and params["length"] > params["unroll"]):
            rolled |= any(one.flops for one in inner)
    return Count(flops, rolled)


def dot_flops(equation) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return (
        2.0
        * math.prod(equation.outvars[0].aval.shape)
        * math.prod(shape[axis] for axis in contracted)
    )


def conv_flops(equation) -> float:
    """2 x batch x channels in and out x the pairs of an output pixel and a kernel element that meet
    a true input pixel."""
    params, (image, kernel) = equation.params, (variable.aval.shape for variable in equation.invars)
    numbers, out = params["dimension_numbers"], equation.outvars[0].aval.shape
    flops = 2.0 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for i, axis in enumerate(numbers.lhs_spec[2:]):
        outputs = np.arange(out[numbers.out_spec[2 + i]])[:, None] * params["window_strides"][i]
        taps = np.arange(kernel[numbers.rhs_spec[2 + i]])[None] * params["rhs_dilation"][i]
        position, dilation = outputs + taps - params["padding"][i][0], params["lhs_dilation"][i]
        inside = (
            (position >= 0)
            & (position <= (image[axis] - 1) * dilation)
            & (position % dilation == 0)
        )
        flops *= inside.sum()
    return flops
