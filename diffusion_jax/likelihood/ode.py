"""The probability-flow ODE with adaptive steps (diffrax), and the likelihood that it gives.

In variance-preserving coordinates z = x / sqrt(alpha^2 + sigma^2), which every schedule shares, and
in l = log(sigma / alpha), the ODE (Song et al. 2021b, eq. 13) is dz / dl = a s v with a^2 = 1 / (1
+ e^(2 l)), s^2 = 1 - a^2 and v = a eps - s x0: its solution has about unit scale at every level.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.grids import between, finite
from diffusion_jax.core.noise import threefry
from diffusion_jax.core.process import full_precision
from diffusion_jax.core.types import Array, Denoiser, Level, PyTree, Schedule

MAX_STEPS = 4096


def scale(level: Level):
    return jnp.sqrt(level.alpha**2 + level.sigma**2)


def flow(denoiser: Denoiser, t: Level, s: Level, schedule: Schedule | None = None) -> Callable:
    """dz / dtau (tau, z [B, ...]) of the ODE, tau from 0 at t to 1 at s, scalar or [B].

    schedule: of the network, which embeds t; without it the t between is interpolated.
    """

    def velocity(tau, z):
        level = between(t, s, tau, schedule)
        here = level.expand(z.ndim)
        unit = scale(here)
        prediction = denoiser(unit * z, level)
        a, sigma = here.alpha / unit, here.sigma / unit
        length = 0.5 * (
            t.expand(z.ndim).logsnr - s.expand(z.ndim).logsnr
        )  # of l, negative where s is cleaner
        return length * a * sigma * (a * prediction.eps - sigma * prediction.x0)

    return velocity


def _worst(tree) -> jax.Array:
    """The largest root mean square of an example, so that each meets the tolerance whatever its
    batch."""
    mean_square = lambda a: jnp.mean(a.reshape(a.shape[0], -1) ** 2, axis=1)
    return jnp.sqrt(jnp.max(jnp.stack([jnp.max(mean_square(a)) for a in jax.tree.leaves(tree)])))


@full_precision
def solve(velocity: Callable, start: PyTree, rtol: float, atol: float) -> PyTree:
    """The value at tau = 1 from that at tau = 0, a pytree of [B, ...], by an adaptive method of
    order 5 (Tsitouras 2011).

    NaN where `MAX_STEPS` steps are not enough.
    """
    import diffrax  # here, so that the library imports quickly

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda tau, z, _: velocity(tau, z)),  # pyright: ignore[reportArgumentType]
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=None,
        y0=start,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_worst),
        max_steps=MAX_STEPS,
        throw=False,
    )
    solved = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda a: jnp.where(solved, a[-1], jnp.nan), solution.ys)


@full_precision
def divergence(
    function: Callable, z: jax.Array, probes: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(function(z), its divergence [B]) for a function of z [B, ...] that treats examples apart.

    Exactly, by as many derivatives as an example has numbers, or estimated from probes [K, B, ...]
    of unit variance (Hutchinson 1990)."""
    if probes is None:
        size = z[0].size
        directions = jnp.broadcast_to(
            jnp.eye(size, dtype=z.dtype).reshape(size, 1, *z.shape[1:]), (size, *z.shape)
        )
    else:
        directions = probes
    value, product = jax.linearize(function, z)
    along = lambda e: jnp.sum((e * product(e)).reshape(len(z), -1), axis=1)
    total = jnp.sum(jax.lax.map(along, directions, batch_size=16), axis=0)
    return value, total if probes is None else total / len(probes)


@full_precision
def log_likelihood(
    denoiser: Denoiser,
    x0: Array,
    schedule: Schedule,
    keys: jax.Array | None = None,
    probes: int = 1,
    t_min: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> jax.Array:
    """log p(x0) in nats, [B], of the data x0 [B, ...], by the change of density along the ODE (Song
    et al. 2021b, eq. 39).

    schedule: of the network. keys: [B], one per example, for Hutchinson's estimate from `probes`
    Rademacher vectors; without them the divergence is exact, at as many derivatives a call as x0
    has numbers. t_min: the t at which the density of alpha x0 is measured, by default the
    schedule's; it is that of data with noise of sigma / alpha, which is the data's own where that
    is much smaller than their detail. At t_max x is taken to have the density of
    `noise.initial_noise`."""
    ends = (schedule.t_min if t_min is None else t_min, schedule.t_max)
    clean, noisy = (finite(Level(*map(jnp.asarray, schedule.level(t)))) for t in ends)
    z = clean.alpha / scale(clean) * jnp.asarray(x0)
    size, velocity = z[0].size, flow(denoiser, clean, noisy, schedule)
    directions = None
    if keys is not None:
        rademacher = lambda key: jax.random.rademacher(key, (probes, *z.shape[1:]), z.dtype)
        directions = jnp.moveaxis(jax.vmap(rademacher)(threefry(keys)), 0, 1)
    both = lambda tau, state: divergence(lambda z: velocity(tau, z), state[0], directions)
    z_noisy, change = solve(both, (z, jnp.zeros(len(z), z.dtype)), rtol, atol)
    of_noise = -0.5 * jnp.sum(z_noisy.reshape(len(z), -1) ** 2, axis=1) - 0.5 * size * np.log(
        2.0 * np.pi
    )
    return of_noise + change + size * jnp.log(clean.alpha / scale(clean))


def bits_per_dim(log_likelihood: Array, size: int) -> jax.Array:
    """Of 8-bit data in [-1, 1] to which `dequantized` has added noise: bins are 2 / 255 wide.
    log_likelihood in nats, [B]."""
    nats = jnp.asarray(log_likelihood)
    return -nats / (size * np.log(2.0)) - np.log2(2.0 / 255.0)


def dequantized(keys: jax.Array, x0: Array) -> jax.Array:
    """x0 [B, ...] of 8-bit values with noise uniform over their bins, +-1/255 (Theis et al. 2016,
    section 3.1). keys: [B]."""
    uniform = lambda key: jax.random.uniform(key, jnp.shape(x0)[1:], minval=-1.0, maxval=1.0)
    return jax.vmap(uniform)(threefry(keys)) / 255.0 + x0
