"""ER-SDE, exponential integrators for a family of reverse SDEs (Cui et al. 2023)."""

import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.components import component
from diffusion_jax.core.types import Denoiser, Level, Sampler
from diffusion_jax.samplers.adams import earlier, lagrange, quadrature


def _scale(u):
    """(g, u g' / g) of the paper's function phi(u) = u g(u), g = exp(u^0.3) + 10."""
    power = u**0.3
    g = jnp.exp(power) + 10.0
    return g, 0.3 * power * jnp.exp(power) / g


@component
def er_sde(order: int = 3) -> Sampler:
    """ER-SDE-Solver (Cui et al. 2023, phi(u) = u (exp(u^0.3) + 10)), one call a step; of no order.

    With u = sigma / alpha the mean of x / alpha at u_s is phi(u_s) / phi(u_t) of itself and the
    integral of x0 by phi, in which x0 goes on as the polynomial through its last values; its noise
    has the variance u_s^2 - u_t^2 (phi(u_s) / phi(u_t))^2. Of Gaussian data the moments are of the
    order that is asked for, up to 2. The published third-order formula lacks, of Newton's
    polynomial, the part of its second difference that is linear in u.

    Args:
      order: the number of these values, from 1 to 3.
    """
    if not 1 <= order <= 3:
        raise ValueError(f"order must be a whole number from 1 to 3, not {order}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        before, lengths = state
        x0 = denoiser(x, t).x0
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        u, end = t.sigma / t.alpha, s.sigma / s.alpha
        (g, _), (g_end, _) = _scale(u), _scale(end)
        kept = end / u * g_end / g
        ahead, masses = quadrature(jnp.log(u / end))
        places = u[..., None] * jnp.exp(-ahead)
        g_there, bent = _scale(places)
        masses = masses * end[..., None] / places * g_end[..., None] / g_there * (1.0 + bent)
        mean = kept / t.alpha * x + (1.0 - kept) * x0
        for was, polynomial in zip(before, lagrange(u[..., None] - places, lengths), strict=True):
            mean = mean + jnp.sum(masses * polynomial, axis=-1) * (was - x0)
        deviation = end * jnp.sqrt(-jnp.expm1(2.0 * jnp.log(g_end / g)))
        after = s.alpha * (mean + deviation * noise.normal(keys, x.shape[1:]))
        return after, ((x0, *before)[: order - 1], (u - end, *lengths)[: order - 1])

    return Sampler(earlier(order - 1), step, draws_noise=True)


SAMPLERS = {"er_sde": er_sde}
