"""Samplers, and `sample`, the library's only loop over a reverse chain.

A sampler moves x from a level t to the cleaner level s. The last hop, to sigma = 0, is the denoiser's x0: exact for DDPM,
whose posterior there has mean x0 and variance 0, and for DDIM, whose step reduces to it.

`keys` is one PRNG key per example, so that sample number i is the same in any batch.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.process import VARIANCES, logsnr_drop, q_posterior, reverse_log_variance
from diffusion_jax.types import Array, Denoiser, Level, Sampler


def example_keys(key: jax.Array, index: Array) -> jax.Array:
    """Keys [B] of the examples numbered index [B]: fold_in(key, i)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B, *shape], example i from keys[i] alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...], level: Level) -> jax.Array:
    """x_T [B, *shape] ~ N(0, (alpha^2 + sigma^2) I), the marginal of unit-variance data; N(0, I) in DDPM. level: scalar."""
    return jnp.sqrt(level.alpha**2 + level.sigma**2) * normal(keys, shape)


def ancestral(variance: str = "fixed_small") -> Sampler:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2), between any two levels; of order 1.

    variance: "fixed_small", "fixed_large", or "learned_range" for a network with learned variance (Nichol & Dhariwal 2021,
    section 3.1); see `process.reverse_log_variance`.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance is one of {', '.join(VARIANCES)}, not {variance!r}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        prediction = denoiser(x, t)
        mean, _ = q_posterior(prediction.x0, x, s, t)
        log_variance = reverse_log_variance(variance, s.expand(x.ndim), t.expand(x.ndim), prediction.aux)
        return mean + jnp.exp(0.5 * log_variance) * normal(keys, x.shape[1:]), state

    return Sampler(lambda x, level: (), step)


def ddim(eta: float = 0.0) -> Sampler:
    """DDIM (Song et al. 2021, eqs. 12 and 16), between any two levels; of order 1, deterministic at eta = 0.

    eta, in [0, 1], scales the noise's standard deviation: 0 for the probability-flow ODE, 1 for DDPM's fixed-small variance.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], not {eta}")

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        prediction = denoiser(x, t)
        s, t = s.expand(x.ndim), t.expand(x.ndim)
        noise_share = -jnp.expm1(logsnr_drop(s, t)) * eta**2
        x = s.alpha * prediction.x0 + s.sigma * jnp.sqrt(1.0 - noise_share) * prediction.eps
        if eta > 0:
            x = x + s.sigma * jnp.sqrt(noise_share) * normal(keys, x.shape[1:])
        return x, state

    return Sampler(lambda x, level: (), step)


def sample(sampler: Sampler, denoiser: Denoiser, keys: jax.Array, x_init: Array, grid: Level, trajectory: bool = False):
    """Runs the reverse chain from x_init [B, ...], at grid's first level, to clean data x0 [B, ...].

    keys: [B], one per example. grid: levels [N], noisy to clean; N - 1 steps are scanned and the last level's x0 is
    returned, so that the network is called N times by a one-call sampler. With trajectory the result is (x0, xs), xs
    [N + 1, B, ...] holding x at every level of the grid, then x0.
    """
    last = len(grid.t) - 1
    level = lambda i: jax.tree.map(lambda a: a[i], Level(*map(jnp.asarray, grid)))

    def body(carry, i):
        x, state = carry
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        after = sampler.step(step_keys, denoiser, x, state, level(i), level(i + 1))
        return after, (x if trajectory else None)

    (x, _), xs = jax.lax.scan(body, (x_init, sampler.init(x_init, level(0))), jnp.arange(last))
    x0 = denoiser(x, level(last)).x0
    return x0 if xs is None else (x0, jnp.concatenate([xs, x[None], x0[None]]))


def invert(denoiser: Denoiser, x: Array, grid: Level) -> jax.Array:
    """DDIM run backwards: encodes x [B, ...], at grid's last, cleanest level, as x at its first, noisiest one.

    From each level the noise predicted there is kept to the next noisier one (Song et al. 2021, eq. 14). `sample` with
    `ddim()` on the same grid comes back to x, the closer the finer the grid. grid: levels [N], noisy to clean.
    """
    level = lambda i: jax.tree.map(lambda a: a[i], Level(*map(jnp.asarray, grid)))

    def body(x, i):
        prediction, t = denoiser(x, level(i)), level(i - 1)
        return t.alpha * prediction.x0 + t.sigma * prediction.eps, None

    return jax.lax.scan(body, x, jnp.arange(len(grid.t) - 1, 0, -1))[0]


SAMPLERS = {"ancestral": ancestral, "ddim": ddim}
