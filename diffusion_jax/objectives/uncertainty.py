"""EDM2's objective: noise levels weigh as much as their errors are certain (Karras et al. 2024, eq.
21; Kendall et al. 2018)."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.components import component
from diffusion_jax.core.settings import above
from diffusion_jax.objectives import losses
from diffusion_jax.objectives.objective import Objective, Problem, network, noised, with_times

B1, B2, EPSILON = 0.9, 0.99, 1e-8  # of the function's own Adam


def fourier(logsnr, dim: int):
    """sqrt(2) cos(2 pi (f c + phi)) [B, dim] of c = log(sigma / alpha) / 4, f ~ N(0, 1) and phi ~
    U(0, 1) being drawn once and for all (eq. 75). Pure noise counts as a log-SNR of -40."""
    drawn = np.random.RandomState(0)
    f, phi = drawn.standard_normal(dim), drawn.uniform(size=dim)
    c = jnp.clip(logsnr, -40.0, 40.0)[:, None] / -8.0
    return math.sqrt(2) * jnp.cos(2 * math.pi * (c * f + phi))


def log_variance(w, logsnr):
    """u [B], the logarithm of the expected error at a noise level [B]: a linear layer over Fourier
    features, of weights w [dim]."""
    return fourier(logsnr, len(w)) @ w / math.sqrt(len(w))


def first_variance(features: int) -> dict[str, jax.Array]:
    """The state of `log_variance` before the first step: its weights and Adam's moments."""
    return {"u": jnp.zeros(features), "moments": jnp.zeros((2, features))}


def learned_variance(aux, state, report, learning_rate: float) -> dict[str, jax.Array]:
    """The state, part of aux, after a step of Adam on error / e^u + u, of the report's errors."""

    def loss(w):
        u = log_variance(w, report["logsnr"])
        return jnp.mean(report["weights"] * (report["error"] * jnp.exp(-u) + u))

    g = jax.grad(loss)(aux["u"])
    m, v = aux["moments"]
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    mean, square = m / (1 - B1**state.step), v / (1 - B2**state.step)
    u = aux["u"] - learning_rate * mean / (jnp.sqrt(square) + EPSILON)
    return {"u": u, "moments": jnp.stack([m, v])}


@component
def uncertainty(problem: Problem, features: int = 128, learning_rate: float = 0.01) -> Objective:
    """error / e^u + u, the error of `denoising` over what a function u of the noise level, trained
    beside the network, expects of it, so that every level counts alike (Karras et al. 2024, eq.
    21).

    u has an Adam of its own, whose gradient needs the errors alone; it is part of the objective's
    state. The weighting is that of the error, for EDM's network `edm`.

    Args:
      features: Fourier features of the noise level, at least 1.
      learning_rate: of u, above 0; the network's has no bearing on it.
    """
    above(0, features=features, learning_rate=learning_rate)
    squared = losses.denoising(problem.parameterization, "l2", problem.weighting)

    def on_batch(params, aux, context, batch):
        x0, eps, level, cond = noised(problem, context, batch)
        error = squared(network(params, context), x0, eps, level, cond)
        u = log_variance(aux["u"], level.logsnr)
        return error * jnp.exp(-u) + u, {"logsnr": level.logsnr, "error": error, "u": u}

    timed = with_times(problem.timesteps, on_batch)

    def init(key, params):
        return timed.init(key, params) | first_variance(features)

    def update(aux, state, report):
        learned = learned_variance(aux, state, report, learning_rate)
        return timed.update(aux, state, report) | learned

    return Objective(init, timed.sample, on_batch, update)
