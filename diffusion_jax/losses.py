"""Training losses: factories of functions (network, x0, eps, level, cond) -> losses [B]."""

import jax.numpy as jnp

from diffusion_jax.denoisers import split_output
from diffusion_jax.process import q_sample
from diffusion_jax.types import Loss, Parameterization

NORMS = {"l2": jnp.square, "l1": jnp.abs}


def denoising(parameterization: Parameterization, norm: str = "l2") -> Loss:
    """The error of the network's output against its target at x_t: L_simple with `predictions.eps` (Ho et al. 2020, eq. 14).

    norm: "l2", the mean square, or "l1", the mean absolute error, over all axes but the batch's. The returned loss takes
    x0 and eps [B, ...], level [B], cond; a learned variance, where the network has one, is left out.
    """
    error = NORMS[norm]

    def loss(network, x0, eps, level, cond=None):
        x_in, t_in = parameterization.inputs(q_sample(x0, eps, level), level)
        output, _ = split_output(network(x_in, t_in, cond), x0.shape[-1])
        difference = output - parameterization.target(x0, eps, level)
        return jnp.mean(error(difference), axis=tuple(range(1, x0.ndim)))

    return loss


LOSSES = {"denoising": denoising}
