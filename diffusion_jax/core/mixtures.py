"""Mixtures of Gaussians: data whose denoiser, density and samples are known in closed form, to hold
samplers against."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from diffusion_jax.core.noise import fold_in
from diffusion_jax.core.types import Array, Level, Prediction


def _columns(level: Level) -> tuple[jax.Array, jax.Array]:
    return jnp.reshape(level.alpha, (-1, 1)), jnp.reshape(level.sigma, (-1, 1))


class Mixture(NamedTuple):
    """Isotropic Gaussians: weights [K], which sum to 1, means [K, D] and standard deviations
    [K]."""

    weights: Array
    means: Array
    stds: Array

    def _joint(self, x, level: Level):
        """(x less the scaled means [B, K, D], variances [B or 1, K], log of weight times density
        [B, K]) at a level."""
        weights, means, stds = (jnp.asarray(a, x.dtype) for a in self)
        alpha, sigma = _columns(level)
        variance = alpha**2 * stds**2 + sigma**2
        offset = x[:, None] - alpha[..., None] * means
        log_density = -0.5 * jnp.sum(offset**2, -1) / variance - 0.5 * offset.shape[-1] * jnp.log(
            2.0 * np.pi * variance
        )
        return offset, variance, jnp.log(weights) + log_density

    def denoiser(self, x: Array, level: Level) -> Prediction:
        """The exact x0 = E[x0 | x] and its eps, for x [B, D] at a level, scalar or [B]; a
        `Denoiser`."""
        x = jnp.asarray(x)
        offset, variance, joint = self._joint(x, level)
        (alpha, sigma), stds = _columns(level), jnp.asarray(self.stds, x.dtype)
        share = jax.nn.softmax(joint, axis=1)[..., None]
        x0 = jnp.sum(
            share
            * (jnp.asarray(self.means, x.dtype) + (alpha * stds**2 / variance)[..., None] * offset),
            axis=1,
        )
        # not (x - alpha x0) / sigma, which loses its digits where sigma is small
        eps = jnp.sum(share * (sigma / variance)[..., None] * offset, axis=1)
        return Prediction(x0, eps)

    def log_prob(self, x: Array, level: Level) -> jax.Array:
        """log density in nats, [B], of x [B, D] at a level; `types.CLEAN` is that of the data."""
        return logsumexp(self._joint(jnp.asarray(x), level)[2], axis=1)

    def sample(self, keys: jax.Array) -> jax.Array:
        """Data [B, D] from keys [B]."""

        def one(key, part_key):
            k = jax.random.categorical(part_key, jnp.log(self.weights))
            noise = jax.random.normal(key, jnp.shape(self.means)[1:])
            return jnp.asarray(self.means)[k] + jnp.asarray(self.stds)[k] * noise

        return jax.vmap(one)(fold_in(keys, 0), fold_in(keys, 1))
