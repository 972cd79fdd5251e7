"""A critic's part in an objective: hinge losses, and the weight that balances it with the error."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

DELTA, MOST = 1e-6, 1e4  # beside the gradient that is divided by; of the weight


def per_example(a: jax.Array) -> jax.Array:
    """The means of examples, [B, ...] -> [B]."""
    return a.reshape(len(a), -1).mean(axis=1)


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The critic's loss [B] of what it says of images and of reconstructions [B, ...] (Lim & Ye
    2017): 0 where they are at least 1 and at most -1."""
    relu = jax.nn.relu
    return 0.5 * (per_example(relu(1.0 - real)) + per_example(relu(1.0 + fake)))


def linearised(function: Callable[[Any], jax.Array], y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(function(y) [B], its gradient at y [B, ...]) of a function example by example.

    The first has this very gradient in y, which is computed once, and none in anything else."""
    y_held = jax.lax.stop_gradient(y)
    value, pull = jax.vjp(function, y_held)
    (slope,) = pull(jnp.ones_like(value))
    value, slope = jax.lax.stop_gradient((value, slope))
    return value + (slope * (y - y_held)).reshape(len(y), -1).sum(axis=1), slope


def kernel_gradients(h: jax.Array, slope: jax.Array) -> jax.Array:
    """The gradients [B, 3, 3, c, C] in the kernel of a 3 x 3 convolution, with zeros round the
    image, of h [B, H, W, c], where those in its result are [B, H, W, C]: example by example, which
    a whole batch's is the sum of."""
    _, height, width, _ = h.shape
    around = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = lambda i, j: around[:, i : i + height, j : j + width]
    of = lambda i, j: jnp.einsum("bhwc,bhwo->bco", shifted(i, j), slope)
    return jnp.stack([jnp.stack([of(i, j) for j in range(3)], axis=1) for i in range(3)], axis=1)


def adaptive_weight(error: jax.Array, critic: jax.Array) -> jax.Array:
    """The norm of the error's gradient in the decoder's last layer over that of the critic's term,
    at most 10,000 (Esser et al. 2021, eq. 7). The gradients are examples', [B, ...]."""
    norm = lambda a: jnp.sqrt(jnp.sum(jnp.square(a.mean(axis=0))))
    return jnp.clip(norm(error) / (norm(critic) + DELTA), 0.0, MOST)
