"""Schedules in continuous time: formulas in t, real numbers from t_min to t_max of any shape, which
do not check t."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.components import component
from diffusion_jax.core.settings import finite
from diffusion_jax.core.types import Level, Schedule


def alpha_of(logsnr) -> jax.Array:
    """alpha where alpha^2 + sigma^2 = 1; sigma is that of -logsnr."""
    return jnp.sqrt(jax.nn.sigmoid(logsnr))


def continuous(
    alpha: Callable, sigma: Callable, inverse: Callable, t_min: float, t_max: float
) -> Schedule:
    """The schedule of alpha(t), sigma(t) and inverse(logsnr), functions of real numbers: float64
    under jax_enable_x64."""

    def real(a):
        a = jnp.asarray(a)
        return a.astype(jnp.result_type(a, float))

    def level(t) -> Level:
        t = real(t)
        return Level(t, alpha(t), sigma(t))

    return Schedule(level, lambda logsnr: inverse(real(logsnr)), t_min, t_max, num_steps=None)


def check_rising(floor: float, **values: float) -> None:
    rising = itertools.pairwise((floor, *values.values(), np.inf))
    if not all(low < high for low, high in rising):
        raise ValueError(
            f"{' and '.join(values)} must lie above {floor} and rise, not {list(values.values())}"
        )


def time_shifted(t, shift: float):
    """s t / (1 + (s - 1) t), the t in [0, 1] of rectified flow for images of more pixels (Esser et
    al. 2024, eq. 23).

    There sigma / alpha = t / (1 - t), which becomes s times as large: s = sqrt(m / n) gives images
    of m pixels the noise of those of n."""
    return shift * t / (1.0 + (shift - 1.0) * t)


@component
def from_logsnr(logsnr: Callable, inverse: Callable, t_min: float, t_max: float) -> Schedule:
    """The continuous, variance-preserving schedule of a log-SNR: alpha^2 = sigmoid(logsnr(t)),
    sigma^2 = sigmoid(-logsnr(t)).

    logsnr: falls with t in [t_min, t_max]; inverse: logsnr -> t. Both work on arrays of any shape
    (Kingma et al. 2021, section 3.2)."""
    return continuous(
        lambda t: alpha_of(logsnr(t)), lambda t: alpha_of(-logsnr(t)), inverse, t_min, t_max
    )


@component
def linear_logsnr(logsnr_min: float = -15.0, logsnr_max: float = 15.0) -> Schedule:
    """A log-SNR falling linearly from logsnr_max at t = 0 to logsnr_min at t = 1 (Kingma et al.
    2021, the fixed schedule).

    Args:
      logsnr_min: log-SNR at t = 1, the noisiest.
      logsnr_max: log-SNR at t = 0, the cleanest, above logsnr_min.
    """
    check_rising(-np.inf, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    fall = logsnr_max - logsnr_min
    return from_logsnr(
        lambda t: logsnr_max - fall * t, lambda logsnr: (logsnr_max - logsnr) / fall, 0.0, 1.0
    )


@component
def cosine_logsnr(
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
    shift: float = 0.0,
    noisy_shift: float | None = None,
) -> Schedule:
    """Alpha a cosine and sigma a sine, logsnr = -2 log tan(u) + shift, u linear in t (Hoogeboom et
    al. 2023, section 3.1).

    Nichol & Dhariwal 2021's cosine in continuous time, from logsnr_max at t = 0 to logsnr_min at t
    = 1 whatever the shift. With a shift for either end it is the paper's interpolated schedule,
    (1 - t) logsnr(shift) + t logsnr(noisy_shift), whose inverse is found by bisection.

    Args:
      logsnr_min: log-SNR at t = 1, the noisiest.
      logsnr_max: log-SNR at t = 0, the cleanest, above logsnr_min.
      shift: added to the log-SNR between the ends; 2 log(64 / d) gives images d pixels wide the
        noise of 64 x 64 ones.
      noisy_shift: the shift towards t = 1, where it is another one than towards t = 0, as 2 log(256
        / d) beside a shift of 2 log(32 / d); none for the same.
    """
    check_rising(-np.inf, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
    finite(shift=shift)
    if noisy_shift is None or noisy_shift == shift:
        return from_logsnr(*_cosine(logsnr_min, logsnr_max, shift), 0.0, 1.0)
    finite(noisy_shift=noisy_shift)
    clean, _ = _cosine(logsnr_min, logsnr_max, shift)
    noisy, _ = _cosine(logsnr_min, logsnr_max, noisy_shift)
    between = lambda t: (1.0 - t) * clean(t) + t * noisy(t)
    values = np.asarray(between(np.linspace(0.0, 1.0, 1001)))
    if not np.all(values[1:] < values[:-1]):
        raise ValueError(
            f"between the shifts {shift} and {noisy_shift} the log-SNR does not fall everywhere; "
            "take shifts that are less than 6 apart"
        )

    def inverse(logsnr):
        def half(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            later = between(middle) > logsnr
            return jnp.where(later, middle, low), jnp.where(later, high, middle)

        ends = jnp.zeros_like(logsnr), jnp.ones_like(logsnr)
        return jax.lax.fori_loop(0, jnp.finfo(logsnr.dtype).nmant + 2, half, ends)[0]

    return from_logsnr(between, inverse, 0.0, 1.0)


def _cosine(logsnr_min: float, logsnr_max: float, shift: float) -> tuple[Callable, Callable]:
    """The log-SNR of `cosine_logsnr` with one shift, and its inverse."""
    first = float(np.arctan(np.exp(-0.5 * (logsnr_max - shift))))  # u at t = 0
    last = float(np.arctan(np.exp(0.5 * (logsnr_min - shift))))  # pi/2 - u at t = 1
    width = 0.5 * np.pi - first - last

    def logsnr(t):
        # log cos(u) from pi/2 - u, which keeps its digits at the noisy end
        return (
            2.0 * (jnp.log(jnp.sin(last + width * (1.0 - t))) - jnp.log(jnp.sin(first + width * t)))
            + shift
        )

    return logsnr, lambda lam: (jnp.arctan(jnp.exp(-0.5 * (lam - shift))) - first) / width


def _integrated_beta(beta_min: float, beta_max: float) -> tuple[Callable, Callable]:
    """B(t), the integral from 0 of beta(t) = beta_min + t (beta_max - beta_min), and its
    inverse."""
    if not (0.0 <= beta_min <= beta_max and beta_max > 0.0):
        raise ValueError(
            f"beta_min and beta_max must be at least 0 and not fall, not {beta_min} and {beta_max}"
        )
    slope = beta_max - beta_min
    integral = lambda t: t * (beta_min + 0.5 * slope * t)
    inverse = lambda b: (
        2.0 * b / (beta_min + jnp.sqrt(beta_min**2 + 2.0 * slope * b))
    )  # no difference of near numbers
    return integral, inverse


@component
def vp(
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    t_min: float = 1e-3,
    t_max: float = 1.0,
    shift: float = 0.0,
) -> Schedule:
    """The VP SDE, DDPM in continuous time: alpha^2 = exp(-integral of a linear beta) (Song et al.
    2021b, eqs. 11 and 29).

    sigma^2 = 1 - alpha^2; beta(t) = beta_min + t (beta_max - beta_min).

    Args:
      beta_min: beta at t = 0, at least 0.
      beta_max: beta at t = 1, above 0 and at least beta_min.
      t_min: the cleanest t, above 0.
      t_max: the noisiest t, above t_min.
      shift: added to the log-SNR; 2 log(64 / d) gives images d pixels wide the noise of 64 x 64
        ones.
    """
    finite(shift=shift)
    check_rising(0.0, t_min=t_min, t_max=t_max)
    integral, inverse = _integrated_beta(beta_min, beta_max)
    kept = lambda t: jnp.exp(-0.5 * integral(t))
    rest = lambda t: jnp.exp(-0.5 * shift) * jnp.sqrt(-jnp.expm1(-integral(t)))
    whole = lambda t: jnp.hypot(kept(t), rest(t)) if shift else 1.0
    return continuous(
        lambda t: kept(t) / whole(t),
        lambda t: rest(t) / whole(t),
        lambda logsnr: inverse(jax.nn.softplus(shift - logsnr)),
        t_min,
        t_max,
    )


@component
def sub_vp(
    beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3, t_max: float = 1.0
) -> Schedule:
    """The sub-VP SDE: the VP SDE's alpha with less noise, sigma = 1 - alpha^2 (Song et al. 2021b,
    eqs. 12 and 29).

    Args:
      beta_min: beta at t = 0, at least 0.
      beta_max: beta at t = 1, above 0 and at least beta_min.
      t_min: the cleanest t, above 0.
      t_max: the noisiest t, above t_min.
    """
    check_rising(0.0, t_min=t_min, t_max=t_max)
    integral, inverse = _integrated_beta(beta_min, beta_max)
    alpha, sigma = lambda t: jnp.exp(-0.5 * integral(t)), lambda t: -jnp.expm1(-integral(t))
    # sigma / alpha = 1 / alpha - alpha = 2 sinh(integral / 2)
    return continuous(
        alpha,
        sigma,
        lambda logsnr: inverse(2.0 * jnp.arcsinh(0.5 * jnp.exp(-0.5 * logsnr))),
        t_min,
        t_max,
    )


@component
def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """The VE SDE: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, t in [0, 1] (Song et al.
    2021b, appendix C).

    Args:
      sigma_min: the least sigma, above 0.
      sigma_max: the largest sigma, above sigma_min.
    """
    check_rising(0.0, sigma_min=sigma_min, sigma_max=sigma_max)
    log_min, log_ratio = float(np.log(sigma_min)), float(np.log(sigma_max / sigma_min))
    sigma = lambda t: jnp.exp(log_min + log_ratio * t)
    return continuous(
        jnp.ones_like, sigma, lambda logsnr: (-0.5 * logsnr - log_min) / log_ratio, 0.0, 1.0
    )


@component
def edm(sigma_min: float = 0.002, sigma_max: float = 80.0) -> Schedule:
    """EDM's schedule: alpha = 1 and sigma = t, from sigma_min to sigma_max (Karras et al. 2022,
    table 1).

    Args:
      sigma_min: the least sigma, above 0.
      sigma_max: the largest sigma, above sigma_min.
    """
    check_rising(0.0, sigma_min=sigma_min, sigma_max=sigma_max)
    return continuous(
        jnp.ones_like, lambda t: t, lambda logsnr: jnp.exp(-0.5 * logsnr), sigma_min, sigma_max
    )


@component
def rectified_flow(t_min: float = 1e-3, t_max: float = 0.999) -> Schedule:
    """The straight path, alpha = 1 - t and sigma = t (Liu et al. 2022, eq. 1; Lipman et al. 2023,
    section 4.1).

    t_max may be 1, pure noise, for predictions that can be decoded at alpha = 0.

    Args:
      t_min: the cleanest t, above 0.
      t_max: the noisiest t, above t_min and at most 1.
    """
    check_rising(0.0, t_min=t_min, t_max=t_max)
    if t_max > 1.0:
        raise ValueError(f"t_max must be at most 1, not {t_max}")
    return continuous(
        lambda t: 1.0 - t, lambda t: t, lambda logsnr: jax.nn.sigmoid(-0.5 * logsnr), t_min, t_max
    )
