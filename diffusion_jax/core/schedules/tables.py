"""Schedules that are tables of T steps, from their betas.

They are built in NumPy float64 and index t = 0 ... T-1, index 0 being the first noising step. In
float32 they would be off by 0.3 % in 1 - alphas_cumprod[0] (cosine, T = 4000)."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from diffusion_jax.core.components import component
from diffusion_jax.core.schedules.continuous import alpha_of
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import CLEAN, Array, Level, Schedule

MAX_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2: "clip beta_t to be no larger than 0.999"


def _betas_for(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Betas [T] whose cumulative product follows alphas_cumprod [T + 1], clipped at `MAX_BETA`."""
    return np.minimum(1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1], MAX_BETA)


def linear_betas(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Betas [T] float64, linear from beta_start to beta_end, both scaled by 1000 / num_steps (Ho et
    al. 2020, section 4).

    The scale keeps the last alphas_cumprod the same for every T (Nichol & Dhariwal 2021). Raises
    ValueError where it pushes a beta above 1: T < 20 with the default ends."""
    at_least(1, num_steps=num_steps)
    above(0, beta_start=beta_start, beta_end=beta_end)
    scale = 1000.0 / num_steps
    if scale * max(beta_start, beta_end) > 1.0:
        least = int(np.ceil(1000.0 * max(beta_start, beta_end)))
        raise ValueError(
            f"a linear schedule of {num_steps} steps has betas above 1; use at least {least} steps"
        )
    return np.linspace(scale * beta_start, scale * beta_end, num_steps, dtype=np.float64)


def cosine_betas(num_steps: int = 1000, s: float = 0.008) -> np.ndarray:
    """Betas [T] float64 of alphas_cumprod = f(t) / f(0), f(t) = cos^2((t/T + s) / (1 + s) pi/2),
    clipped at 0.999.

    Nichol & Dhariwal 2021, eq. 17.
    """
    at_least(1, num_steps=num_steps)
    at_least(0, s=s)
    u = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    return _betas_for(np.cos((u + s) / (1.0 + s) * np.pi / 2.0) ** 2)


def sigmoid_betas(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0
) -> np.ndarray:
    """Betas [T] float64 of alphas_cumprod falling as a sigmoid of t/T from start to end, clipped at
    0.999.

    Jabri et al. 2022, algorithm 1 (`sigmoid_schedule`); `tau` is its temperature.
    """
    at_least(1, num_steps=num_steps)
    above(0, tau=tau)
    if not start < end:
        raise ValueError(f"start must lie below end, not {start} and {end}")
    u = np.arange(num_steps + 1, dtype=np.float64) / num_steps
    sigmoid = lambda a: 1.0 / (1.0 + np.exp(-a / tau))
    return _betas_for(
        (sigmoid(end) - sigmoid(start + u * (end - start))) / (sigmoid(end) - sigmoid(start))
    )


def posterior_tables(betas: Array) -> dict[str, np.ndarray]:
    """DDPM's tables for betas [T], each [T] float64 and named as in its paper (Ho et al. 2020, eqs.
    4, 6, 7).

    `alphas_cumprod`, `alphas_cumprod_prev`, `posterior_variance` (beta-tilde),
    `posterior_log_variance_clipped` (its first entry, log 0, replaced by the second),
    `posterior_mean_coef1` (of x0) and `posterior_mean_coef2` (of x_t). For plots and for readers of
    the papers: samplers and losses use `process.q_posterior`, which needs no table."""
    betas = np.asarray(betas, np.float64)
    alphas_cumprod = np.cumprod(1.0 - betas)
    prev = np.append(1.0, alphas_cumprod[:-1])
    variance = betas * (1.0 - prev) / (1.0 - alphas_cumprod)
    return {
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": prev,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.append(variance[1:2], variance[1:])),
        "posterior_mean_coef1": betas * np.sqrt(prev) / (1.0 - alphas_cumprod),
        "posterior_mean_coef2": (1.0 - prev) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
    }


@component
def from_betas(betas: Array) -> Schedule:
    """The table schedule of betas [T], each in (0, 1].

    `level(t)` takes t in 0 ... T-1, any shape. Integers index the table; floats between two indices
    are interpolated linearly in log-SNR, which `inverse` undoes. Raises ValueError for a t out of
    range that is known on the host (JAX would clamp it silently); a traced one is that of the
    nearer end."""
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a list of numbers, not an array of shape {betas.shape}")
    if not (np.all(betas > 0.0) and np.all(betas <= 1.0)):
        raise ValueError("every beta must lie in (0, 1]")
    num_steps = betas.size
    alphas_cumprod = np.cumprod(1.0 - betas)
    alpha, sigma = np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod)
    with np.errstate(divide="ignore"):
        logsnr = np.maximum(
            2.0 * (np.log(alpha) - np.log(sigma)), -1e4
        )  # finite where a last beta is 1: it is interpolated

    def between(t) -> Level:
        index = jnp.floor(t).astype(jnp.int32)
        fraction, table = t - index, jnp.asarray(logsnr)
        mixed = (1.0 - fraction) * table[index] + fraction * table[
            jnp.minimum(index + 1, num_steps - 1)
        ]
        entry = lambda column, value: jnp.where(fraction == 0.0, jnp.asarray(column)[index], value)
        return Level(t, entry(alpha, alpha_of(mixed)), entry(sigma, alpha_of(-mixed)))

    def level(t) -> Level:
        if not isinstance(t, core.Tracer) and not np.all(
            (np.asarray(t) >= 0) & (np.asarray(t) <= num_steps - 1)
        ):
            raise ValueError(f"t must be a number from 0 to {num_steps - 1}, not {np.asarray(t)}")
        t = jnp.asarray(t)
        if jnp.issubdtype(t.dtype, jnp.floating):
            return between(jnp.clip(t, 0, num_steps - 1))
        index = t.astype(jnp.int32)
        return Level(index, jnp.asarray(alpha)[index], jnp.asarray(sigma)[index])

    def inverse(logsnr_) -> jax.Array:
        return jnp.interp(
            jnp.asarray(logsnr_), jnp.asarray(logsnr[::-1]), jnp.arange(num_steps - 1, -1, -1.0)
        )

    return Schedule(level, inverse, t_min=0, t_max=num_steps - 1, num_steps=num_steps)


def previous(schedule: Schedule, level: Level) -> Level:
    """The next-cleaner neighbours of a table's levels, scalar or [B]; clean, `CLEAN`'s alpha and
    sigma, before index 0.

    That of a fractional t is t - 1, or index 0 where 0 < t < 1, so that a chain of neighbours ends
    with the table's own hop."""
    if schedule.num_steps is None:
        raise ValueError("only a table's levels have neighbours")
    before = schedule.level(jnp.maximum(jnp.asarray(level.t) - 1, 0))
    first = jnp.asarray(level.t) <= 0
    return Level(
        jnp.where(first, CLEAN.t, before.t),
        jnp.where(first, CLEAN.alpha, before.alpha),
        jnp.where(first, CLEAN.sigma, before.sigma),
    )


@component
def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """DDPM's schedule, `linear_betas` as a table (Ho et al. 2020, section 4).

    Args:
      num_steps: T, the number of steps of the table, at least 1.
      beta_start: the first beta of a table of 1000 steps, above 0; of T it is 1000 / T times that.
      beta_end: the last beta of a table of 1000 steps, above 0.
    """
    return from_betas(linear_betas(num_steps, beta_start, beta_end))


@component
def cosine(num_steps: int = 1000, s: float = 0.008) -> Schedule:
    """Improved DDPM's schedule, `cosine_betas` as a table (Nichol & Dhariwal 2021, eq. 17).

    Args:
      num_steps: T, the number of steps of the table, at least 1.
      s: offset that keeps the first betas from vanishing, at least 0.
    """
    return from_betas(cosine_betas(num_steps, s))


@component
def sigmoid(
    num_steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0
) -> Schedule:
    """Jabri et al.'s schedule, `sigmoid_betas` as a table (Jabri et al. 2022).

    Args:
      num_steps: T, the number of steps of the table, at least 1.
      start: where on the sigmoid t = 0 lies, below end.
      end: where on the sigmoid t = T lies.
      tau: temperature of the sigmoid, above 0.
    """
    return from_betas(sigmoid_betas(num_steps, start, end, tau))
