"""Parameterizations: what the network's output means, and how it turns into x0.

Every entry of PREDICTIONS is a factory of a `Parameterization`; with x = alpha x0 + sigma eps, one of x0 and eps gives the
other, so `target` and `x0` are all that differs.
"""

from diffusion_jax.types import Array, Level, Parameterization


def _inputs(x: Array, level: Level):
    return x, level.t


def _expanded(function):
    """The function with its level, scalar or [B], expanded to the rank of its first argument."""
    return lambda a, b, level: function(a, b, level.expand(a.ndim))


def eps() -> Parameterization:
    """The network predicts the noise (Ho et al. 2020, eq. 12). Decoding divides by alpha: it must not be 0."""
    return Parameterization(
        inputs=_inputs,
        target=lambda x0, eps, level: eps,
        x0=_expanded(lambda out, x, level: (x - level.sigma * out) / level.alpha),
    )


def x0() -> Parameterization:
    """The network predicts the clean image."""
    return Parameterization(inputs=_inputs, target=lambda x0, eps, level: x0, x0=lambda out, x, level: out)


def v() -> Parameterization:
    """The network predicts v = alpha eps - sigma x0 (Salimans & Ho 2022, appendix D).

    x0 = (alpha x - sigma v) / (alpha^2 + sigma^2); the divisor is 1 for variance-preserving schedules.
    """
    return Parameterization(
        inputs=_inputs,
        target=_expanded(lambda x0, eps, level: level.alpha * eps - level.sigma * x0),
        x0=_expanded(lambda out, x, level: (level.alpha * x - level.sigma * out) / (level.alpha**2 + level.sigma**2)),
    )


def score() -> Parameterization:
    """The network predicts the score grad log q(x_t) = -eps / sigma (Song et al. 2021, section 3). alpha must not be 0."""
    return Parameterization(
        inputs=_inputs,
        target=_expanded(lambda x0, eps, level: -eps / level.sigma),
        x0=_expanded(lambda out, x, level: (x + level.sigma**2 * out) / level.alpha),
    )


PREDICTIONS = {"eps": eps, "x0": x0, "v": v, "score": score}
