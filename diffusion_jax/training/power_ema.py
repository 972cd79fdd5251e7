"""Averages of parameters by powers of time, and any other one made of stored ones afterwards
(Karras et al. 2024, section 3 and appendix C).

The average of exponent g after t steps weighs the parameters after step s by p(s) = (g + 1) s^g /
t^(g + 1), 0 < s <= t. Its length is that profile's standard deviation over t, "sigma_rel"."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.settings import above

LONGEST = 0.288  # 1 / sqrt(12) is that of exponent 0, which weighs all steps alike


def exponent(length: float) -> float:
    """The exponent of the average of a length, 0.05 for 5 % of the training: the largest root of
    (g + 2)^2 (g + 3) length^2 = g + 1. Raises ValueError unless 0 < length <= LONGEST."""
    above(0, length=length)
    if length > LONGEST:
        raise ValueError(f"length must be at most {LONGEST}, not {length}")
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def share(exponent: float, step):
    """1 - (1 - 1 / step)^(exponent + 1), the share of the parameters after step 1, 2, ... in the
    average (eq. 2); the first takes all. To float32's precision at any step."""
    return -jnp.expm1((exponent + 1.0) * jnp.log1p(-1.0 / jnp.asarray(step, jnp.float32)))


def inner_products(t, g, s, h) -> np.ndarray:
    """The integrals of p q over time, p of exponents g [N] at steps t [N], q of h [M] at s [M] ->
    [N, M], in closed form: (g + 1) (h + 1) / (g + h + 1) min^(g + h + 1) / (t^(g + 1) s^(h + 1)),
    min the lesser of t and s."""
    t, g = (np.asarray(a, np.float64)[:, None] for a in (t, g))
    s, h = (np.asarray(a, np.float64)[None, :] for a in (s, h))
    # by ratios, at most 1, of which no power overflows
    of_later = np.where(t > s, g, h)
    ratio = np.minimum(t, s) / np.maximum(t, s)
    return (g + 1) * (h + 1) / (g + h + 1) * ratio**of_later / np.maximum(t, s)


def coefficients(steps, exponents, step: float, exponent: float) -> np.ndarray:
    """By which stored averages, of `exponents` [N] at `steps` [N], add up to the one of an exponent
    at a step: the least squares of the profiles' difference (algorithm 3)."""
    products = inner_products(steps, exponents, steps, exponents)
    wanted = inner_products(steps, exponents, [step], [exponent])[:, 0]
    size = 1.0 / np.sqrt(np.diagonal(products))  # else the earliest would make it ill-conditioned
    scaled = products * size[:, None] * size
    return np.linalg.lstsq(scaled, wanted * size, rcond=1e-13)[0] * size
