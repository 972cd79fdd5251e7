"""Multi-step methods of Adams and Bashforth for dy = eps du, y = x / alpha and u = sigma / alpha,
the probability-flow ODE of any schedule: LMS, DEIS and PNDM.

They differ in how eps goes on: as a polynomial in u, as one in log u, or by the coefficients of
even steps."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.components import component
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.types import Denoiser, Level, Sampler
from diffusion_jax.samplers.multistep import FAR, growth

NODES, MASSES = (0.5 * a for a in np.polynomial.legendre.leggauss(8))
NODES = NODES + 0.5  # of Gauss-Legendre quadrature on [0, 1]


def lagrange(at, lengths: tuple) -> list:
    """The Lagrange polynomials of the earlier points, newest first, at the distances `at` [..., 8]
    beyond the present one; its own makes their sum 1.

    lengths: [...] of the steps between the points, newest first. One of FAR, before the first
    step, makes what lies beyond it vanish."""
    points, found = [jnp.zeros(1, at.dtype)], []
    for length in lengths:
        points.append(points[-1] - length[..., None])
    for point in points[1:]:
        factors = [(at - p) / (point - p) for p in points if p is not point]
        found.append(math.prod(factors))
    return found


def quadrature(h) -> tuple[jax.Array, jax.Array]:
    """(distances, masses) [..., 8] of the integral over a step h [...] long."""
    h = h[..., None]
    return h * jnp.asarray(NODES, h.dtype), h * jnp.asarray(MASSES, h.dtype)


def earlier(count: int) -> Callable:
    """An init: `count` earlier predictions and the lengths of the steps that followed them, newest
    first."""

    def init(x, level: Level):
        zeros = jnp.zeros_like(x)
        far = jnp.full_like(level.expand(zeros.ndim).alpha, FAR)
        return (zeros,) * count, (far,) * count

    return init


def _method(order: int, most: int, length: Callable, weight: Callable) -> Sampler:
    """eps goes on as the polynomial through its last `order` values over a coordinate, in which a
    step from t to s is length(s, t) long; x_s is alpha_s x0 + sigma_s eps less the integral of
    weight(s, t, what is left of the step) times what eps changes by."""
    if not 1 <= order <= most:
        raise ValueError(f"order must be a whole number from 1 to {most}, not {order}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        before, lengths = state
        here = denoiser(x, t)
        after = q_sample(here.x0, here.eps, s)
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        h = length(s, t)
        at, masses = quadrature(h)
        masses = masses * weight(s, t, h[..., None] - at)
        for eps, polynomial in zip(before, lagrange(at, lengths), strict=True):
            after = after - jnp.sum(masses * polynomial, axis=-1) * (eps - here.eps)
        return after, ((here.eps, *before)[: order - 1], (h, *lengths)[: order - 1])

    return Sampler(earlier(order - 1), step)


@component
def lms(order: int = 4) -> Sampler:
    """The linear multi-step method in x / alpha over sigma / alpha (rhoAB of
    Zhang & Chen 2023), one call a step; of order 4.

    eps goes on as the polynomial through its last values; the first steps have fewer of them.

    Args:
      order: the number of these values, from 1, which is `euler`, to 4.
    """
    return _method(
        order,
        4,
        lambda s, t: t.sigma / t.alpha - s.sigma / s.alpha,
        lambda s, t, left: s.alpha[..., None] * jnp.ones_like(left),
    )


@component
def deis(order: int = 3) -> Sampler:
    """DEIS, Adams-Bashforth in log(sigma / alpha) (Zhang & Chen 2023), one call a step; of
    order 3.

    eps goes on as the polynomial through its last values, of which the integral is taken exactly;
    the first steps have fewer of them. The paper's t is any coordinate of the levels: that of its
    tAB is the schedule's, which a level does not know, that of its rhoAB makes `lms`.

    Args:
      order: the number of these values, from 1, which is `ddim`, to 4.
    """
    return _method(order, 4, growth, lambda s, t, left: s.sigma[..., None] * jnp.exp(left))


# Of the last steps' eps, less the present one's share: Euler, then Adams-Bashforth of 2 to 4 steps
EVEN = (
    np.array([[0, 0, 0], [-12, 0, 0], [-16, 5, 0], [-59, 37, -9]])
    / np.array([1, 24, 12, 24])[:, None]
)


@component
def pndm() -> Sampler:
    """PNDM with its linear multi-step part alone, PLMS (Liu et al. 2022), one call a
    step and one more in the first; of order 2.

    eps goes on by the coefficients of Adams-Bashforth for even steps, 4 at last, and x by the
    transfer of DDIM. The first step is Heun's, of the two eps at its ends."""

    def init(x, level: Level):
        return (jnp.zeros_like(x),) * 3, jnp.int32(0)

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        before, count = state
        here = denoiser(x, t)
        after = q_sample(here.x0, here.eps, s)
        ahead = jax.lax.cond(
            count == 0, lambda: denoiser(after, s).eps.astype(here.eps.dtype), lambda: here.eps
        )
        change = 0.5 * (ahead - here.eps)
        weights = jnp.asarray(EVEN, change.dtype)[jnp.minimum(count, 3)]
        for weight, eps in zip(weights, before, strict=True):
            change = change + weight * (eps - here.eps)
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        after = after + (s.sigma - s.alpha / t.alpha * t.sigma) * change
        return after, ((here.eps, *before[:2]), count + 1)

    return Sampler(init, step)


SAMPLERS = {"lms": lms, "deis": deis, "pndm": pndm}
