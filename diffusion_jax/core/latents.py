"""What the latents of an autoencoder are: points, normal distributions, or codes."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Regularizer = Literal["kl", "vq", "fsq", "none"]
REGULARIZERS = ("kl", "vq", "fsq", "none")
LEAST, MOST = -30.0, 20.0  # of the logarithm of a latent's variance (Rombach et al. 2022)


class Latents(NamedTuple):
    """Of an autoencoder. codes: how many there are, 0 where latents are not quantised. levels: of
    each channel, of finite scalar quantisation. critic: whether the network has one."""

    regularizer: Regularizer
    channels: int
    codes: int = 0
    levels: tuple[int, ...] = ()
    critic: bool = False


def normal_of(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean, logarithm of the variance) [..., c] of moments [..., 2 c], the latter clipped to
    LEAST ... MOST."""
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, jnp.clip(log_variance, LEAST, MOST)


def kl_to_standard(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(N(mean, variance) || N(0, 1)) in nats, number by number (Kingma & Welling 2014, appendix
    B)."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance)
