"""The variational bound on -log p(x0), term by term, in bits/dim, and the choice of steps that
makes it small."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.noise import fold_in, normal
from diffusion_jax.core.process import (
    discretized_gaussian_log_prob,
    first_log_variance,
    full_precision,
    normal_kl,
    q_posterior,
    q_sample,
    reverse_log_variance,
)
from diffusion_jax.core.types import CLEAN, Array, Denoiser, Level, Prediction


def mean_flat(a: Array) -> jax.Array:
    """The mean over all axes but the batch's, [B, ...] -> [B]."""
    return jnp.mean(a, axis=tuple(range(1, jnp.ndim(a))))


def bound_term(
    prediction: Prediction, x0: Array, x_t: Array, s: Level, t: Level, variance: str, first: Array
) -> jax.Array:
    """A term of the variational bound in bits/dim, [B] (Ho et al. 2020, eq. 5; Nichol & Dhariwal
    2021, eq. 4).

    L_s = KL(q(x_s | x_t, x0) || p(x_s | x_t)), or, where s is clean, L_0 = -log p(x0 | x_t) of the
    discretised decoder. x0, x_t: [B, ...]; s, t: scalar or [B]. variance and first: as in
    `process.reverse_log_variance`."""
    true_mean, _ = q_posterior(x0, x_t, s, t)
    mean, _ = q_posterior(prediction.x0, x_t, s, t)
    s, t = s.expand(x0.ndim), t.expand(x0.ndim)
    log_variance = reverse_log_variance(variance, s, t, prediction.aux, first)
    kl = normal_kl(
        true_mean, reverse_log_variance("fixed_small", s, t, first=first), mean, log_variance
    )
    decoder = -discretized_gaussian_log_prob(x0, mean, 0.5 * log_variance)
    return mean_flat(jnp.where(s.sigma == 0.0, decoder, kl)) / np.log(2.0)


class Bound(NamedTuple):
    """The bound of examples [B] on a grid of N levels, noisy to clean; all in bits/dim but the two
    errors."""

    total: jax.Array  # [B], prior + the sum of terms
    prior: jax.Array  # [B], L_T
    terms: jax.Array  # [N, B], L_{t-1} from the noisiest level down, the last one L_0
    x0_mse: jax.Array  # [N, B]
    eps_mse: jax.Array  # [N, B]


def prior_bits(x0: Array, level: Level) -> jax.Array:
    """L_T = KL(q(x_T | x0) || N(0, I)) in bits/dim, [B]. x0: [B, ...]; level: the noisiest,
    scalar."""
    mean, log_variance = level.alpha * x0, 2.0 * jnp.log(level.sigma)
    return mean_flat(normal_kl(mean, log_variance, 0.0, 0.0)) / np.log(2.0)


def _hops(grid: Level) -> tuple[Level, Level]:
    """(t, s): the levels of the grid, and for each its cleaner neighbour, the last one clean."""
    t = Level(*(jnp.asarray(a) for a in grid))
    s = Level(
        *(jnp.append(a[1:], jnp.asarray(clean, a.dtype)) for a, clean in zip(t, CLEAN, strict=True))
    )
    return t, s


def _term(denoiser: Denoiser, keys, x0, t: Level, s: Level, variance: str, first):
    """(bits, x0 error, eps error), each [B], of one hop at noise drawn from keys [B]."""
    eps = normal(keys, x0.shape[1:])
    x_t = q_sample(x0, eps, t)
    prediction = denoiser(x_t, t)
    bits = bound_term(prediction, x0, x_t, s, t, variance, first)
    return bits, mean_flat((prediction.x0 - x0) ** 2), mean_flat((prediction.eps - eps) ** 2)


@full_precision
def bound(denoiser: Denoiser, keys: jax.Array, x0: Array, grid: Level, variance: str) -> Bound:
    """Every term of the variational bound, evaluated in one scan over the grid (Ho et al. 2020, eq.
    5).

    keys: [B], one per example, for the noise at each level. x0: 8-bit values in [-1, 1], [B, ...].
    grid: levels [N], noisy to clean, the whole table or respaced. variance: as in
    `process.reverse_log_variance`."""
    t, s = _hops(grid)
    first = first_log_variance(grid)

    def body(carry, hop):
        i, t, s = hop
        level_keys = fold_in(keys, i)
        return carry, _term(denoiser, level_keys, x0, t, s, variance, first)

    _, (terms, x0_mse, eps_mse) = jax.lax.scan(body, (), (jnp.arange(len(grid.t)), t, s))
    prior = prior_bits(x0, jax.tree.map(lambda a: a[0], t))
    return Bound(prior + jnp.sum(terms, axis=0), prior, terms, x0_mse, eps_mse)


@full_precision
def bound_monte_carlo(
    denoiser: Denoiser, keys: jax.Array, x0: Array, grid: Level, variance: str, samples: int = 1
) -> jax.Array:
    """An unbiased estimate of `bound(...).total` [B] from `samples` hops of each example, drawn
    uniformly from the grid."""
    levels, cleaner = _hops(grid)
    first = first_log_variance(grid)

    def body(total, i):
        draw_keys = fold_in(keys, i)
        hop = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(grid.t)))(
            fold_in(draw_keys, 0)
        )
        noise_keys = fold_in(draw_keys, 1)
        pick = lambda levels: jax.tree.map(lambda a: a[hop], levels)
        return total + _term(
            denoiser, noise_keys, x0, pick(levels), pick(cleaner), variance, first
        )[0], None

    total, _ = jax.lax.scan(body, jnp.zeros(len(x0)), jnp.arange(samples))
    return prior_bits(x0, jax.tree.map(lambda a: a[0], levels)) + len(grid.t) * total / samples


def best_steps(x0_mse: Array, level: Level, budget: int) -> np.ndarray:
    """The `budget` table indices, ascending, whose bound is least, by dynamic programming (Watson
    et al. 2021, section 3).

    x0_mse: [T], the error of the predicted x0 at each index of the table, such as `Bound.x0_mse`
    averaged and turned round. level: the table's levels [T]. The first and the last index always
    stay. With the fixed-small variance the hop from t down to s costs (snr_s - snr_t) x0_mse_t / 2
    nats a dimension (Kingma et al. 2021, eq. 13), so one evaluation of the network per index prices
    every chain."""
    x0_mse = np.asarray(x0_mse, np.float64)
    snr = (np.asarray(level.alpha, np.float64) / np.asarray(level.sigma, np.float64)) ** 2
    steps = len(x0_mse)
    if not 2 <= budget <= steps:
        raise ValueError(f"a budget of {budget} steps must lie between 2 and the table's {steps}")
    cost = np.where(
        np.tri(steps, k=-1), 0.5 * (snr[None] - snr[:, None]) * x0_mse[:, None], np.inf
    )  # [t, s], s < t
    best, back = np.full(steps, np.inf), np.zeros((budget, steps), int)
    best[0] = 0.0
    for k in range(1, budget):
        through = cost + best[None]
        back[k] = np.argmin(through, axis=1)
        best = through[np.arange(steps), back[k]]
    path = [steps - 1]
    for k in range(budget - 1, 0, -1):
        path.append(int(back[k][path[-1]]))
    return np.array(path[::-1])
