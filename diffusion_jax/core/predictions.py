"""Parameterizations: what the network's output means, and how it turns into x0.

Every entry of PREDICTIONS is a factory of a `Parameterization`; with x = alpha x0 + sigma eps, one
of x0 and eps gives the other, so `target` and `x0` are all that differs. Two calls of a factory
with the same arguments give one and the same object, by which `denoisers.classifier_free` sees that
two denoisers are one network."""

import jax.numpy as jnp

from diffusion_jax.core.components import component
from diffusion_jax.core.process import q_posterior, q_sample
from diffusion_jax.core.schedules import previous
from diffusion_jax.core.settings import above
from diffusion_jax.core.types import Array, Level, Parameterization, Schedule, expand, is_known_zero


def _inputs(x: Array, level: Level):
    return x, level.t


def _needs_signal(level: Level, name: str) -> Level:
    """The level to divide by alpha at: ValueError where it is known to be 0; a traced one is kept
    from it, so that what is decoded there is huge, but finite."""
    if is_known_zero(level.alpha):
        raise ValueError(f"{name} cannot be decoded at alpha = 0; x0, v and flow can")
    return level.with_signal()


def _expanded(function):
    """The function with its level, scalar or [B], expanded to the rank of its first argument."""
    return lambda a, b, level: function(a, b, level.expand(a.ndim))


@component
def eps() -> Parameterization:
    """The network predicts the noise (Ho et al. 2020, eq. 12). Decoding divides by alpha, which
    must not be 0: ValueError where that is known on the host."""

    def decode(out, x, level):
        return (x - level.sigma * out) / _needs_signal(level, "eps").alpha

    return Parameterization(inputs=_inputs, target=lambda x0, eps, level: eps, x0=_expanded(decode))


@component
def x0() -> Parameterization:
    """The network predicts the clean image."""
    return Parameterization(
        inputs=_inputs, target=lambda x0, eps, level: x0, x0=lambda out, x, level: out
    )


@component
def v() -> Parameterization:
    """The network predicts v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D).

    x0 = (alpha x - sigma v) / (alpha^2 + sigma^2); the divisor is 1 for variance-preserving
    schedules."""
    return Parameterization(
        inputs=_inputs,
        target=_expanded(lambda x0, eps, level: level.alpha * eps - level.sigma * x0),
        x0=_expanded(
            lambda out, x, level: (
                (level.alpha * x - level.sigma * out) / (level.alpha**2 + level.sigma**2)
            )
        ),
    )


@component
def score() -> Parameterization:
    """The network predicts the score grad log q(x_t) = -eps / sigma (Song et al. 2021, section 3).
    Decoding divides by alpha, as that of `eps`."""

    def decode(out, x, level):
        return (x + level.sigma**2 * out) / _needs_signal(level, "score").alpha

    return Parameterization(
        inputs=_inputs,
        target=_expanded(lambda x0, eps, level: -eps / level.sigma),
        x0=_expanded(decode),
    )


@component
def flow() -> Parameterization:
    """The network predicts the velocity eps - x0 of the straight path (Liu et al. 2022, eq. 1;
    Lipman et al. 2023, eq. 23).

    x0 = (x - sigma velocity) / (alpha + sigma); the divisor is 1 for `schedules.rectified_flow`.
    """
    return Parameterization(
        inputs=_inputs,
        target=lambda x0, eps, level: eps - x0,
        x0=_expanded(lambda out, x, level: (x - level.sigma * out) / (level.alpha + level.sigma)),
    )


@component
def edm(sigma_data: float = 0.5) -> Parameterization:
    """EDM's preconditioning: x0 = c_skip x + c_out F(c_in x, c_noise), F the network (Karras et al.
    2022, eq. 7 and table 1).

    The paper's sigma and x are sigma / alpha and x / alpha here, so that it holds at any alpha > 0.
    The network is fed c_noise = log(sigma / alpha) / 4 in place of t.

    Args:
      sigma_data: the data's standard deviation, above 0.
    """
    above(0, sigma_data=sigma_data)
    # both sides of the paper's fractions times alpha: c_in / alpha = 1 / deviation, the rest
    # accordingly
    deviation = lambda level: jnp.sqrt(level.sigma**2 + (level.alpha * sigma_data) ** 2)

    def inputs(x, level):
        noise = level.sigma / _needs_signal(level, "edm").alpha
        return x / deviation(level.expand(jnp.ndim(x))), jnp.log(noise) / 4.0

    def target(x0, eps, level):  # (x0 - c_skip x) / c_out, without the difference
        return (level.sigma / sigma_data * x0 - level.alpha * sigma_data * eps) / deviation(level)

    def decode(out, x, level):
        return (
            level.alpha * sigma_data**2 / deviation(level) * x + level.sigma * sigma_data * out
        ) / deviation(level)

    return Parameterization(inputs=inputs, target=_expanded(target), x0=_expanded(decode))


@component
def mean(schedule: Schedule) -> Parameterization:
    """The network predicts the posterior mean of the next-cleaner step of a table (Ho et al. 2020,
    eq. 8).

    Its neighbour is that of the table it was trained on, also where sampling is respaced. Raises
    ValueError for a continuous schedule, which has no neighbours."""
    if schedule.num_steps is None:
        raise ValueError(
            "the mean prediction needs a table schedule: it is of the step to a neighbour"
        )

    def posterior(level: Level):
        """The coefficients of x0 and x_t in the mean of q(x_s | x_t, x0), s the neighbour."""
        s = previous(schedule, level)
        of_x0 = q_posterior(jnp.ones_like(s.alpha), jnp.zeros_like(s.alpha), s, level)[0]
        of_x_t = q_posterior(jnp.zeros_like(s.alpha), jnp.ones_like(s.alpha), s, level)[0]
        return of_x0, of_x_t

    def target(x0, eps, level):
        return q_posterior(x0, q_sample(x0, eps, level), previous(schedule, level), level)[0]

    def decode(out, x, level):
        of_x0, of_x_t = (expand(a, x.ndim) for a in posterior(level))
        return (out - of_x_t * x) / of_x0

    return Parameterization(inputs=_inputs, target=target, x0=decode)


PREDICTIONS = {"eps": eps, "x0": x0, "v": v, "score": score, "flow": flow, "edm": edm, "mean": mean}
