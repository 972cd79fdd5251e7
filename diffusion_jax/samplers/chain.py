"""`sample`, the library's only loop over a reverse chain."""

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Denoiser, Level, Sampler


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
