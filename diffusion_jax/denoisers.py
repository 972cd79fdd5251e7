"""Denoisers: functions (x, level) -> Prediction, and transforms from denoiser to denoiser.

A sampler's step receives one and knows nothing of networks, guidance or clipping.
"""

import jax.numpy as jnp

from diffusion_jax.types import ApplyFn, Denoiser, Level, Parameterization, Prediction, PyTree


def split_output(output, channels: int):
    """A network's output [B, ..., C or 2C] -> (its prediction [B, ..., C], the variance fraction [B, ..., C] or None).

    With learned variance the last C channels are v in [-1, 1], mapped to the fraction (v + 1) / 2 (Nichol & Dhariwal
    2021, eq. 15).
    """
    if output.shape[-1] == channels:
        return output, None
    if output.shape[-1] != 2 * channels:
        raise ValueError(f"the network returns {output.shape[-1]} channels for {channels}-channel data")
    output, v = jnp.split(output, 2, axis=-1)
    return output, (v + 1.0) / 2.0


def with_eps(x0, x, level: Level, aux=None) -> Prediction:
    """The Prediction of an x0: eps = (x - alpha x0) / sigma."""
    level = level.expand(x.ndim)
    return Prediction(x0, (x - level.alpha * x0) / level.sigma, aux)


def make_denoiser(apply_fn: ApplyFn, params: PyTree, parameterization: Parameterization, cond: PyTree = None) -> Denoiser:
    """The denoiser of a network.

    apply_fn: (params, x_in [B, ...], t_in [B], cond) -> output [B, ..., C], or 2C channels with learned variance, which
    then fills `Prediction.aux`. cond: a pytree with a leading axis B, such as labels [B], or None.
    """

    def denoiser(x, level: Level) -> Prediction:
        batched = Level(*(jnp.broadcast_to(a, x.shape[:1]) for a in level))
        x_in, t_in = parameterization.inputs(x, batched)
        output, aux = split_output(apply_fn(params, x_in, t_in, cond), x.shape[-1])
        return with_eps(parameterization.x0(output, x, batched), x, batched, aux)

    return denoiser


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clips x0 to the data's range and recomputes eps from it (Ho et al. 2020's samplers; DDIM needs the eps, too)."""

    def clipped(x, level: Level) -> Prediction:
        prediction = denoiser(x, level)
        return with_eps(jnp.clip(prediction.x0, low, high), x, level, prediction.aux)

    return clipped


def classifier_free(conditional: Denoiser, unconditional: Denoiser, w) -> Denoiser:
    """Classifier-free guidance: eps = (1 + w) eps_c - w eps_u (Ho & Salimans 2022, eq. 6); w = 0 is no guidance.

    w: scalar or [B]. x0 follows by the same weights, since x = alpha x0 + sigma eps is linear. `aux` is the conditional
    one's.
    """
    w = jnp.asarray(w)

    def guided(x, level: Level) -> Prediction:
        c, u = conditional(x, level), unconditional(x, level)
        g = w.reshape(w.shape + (1,) * (x.ndim - w.ndim)) if w.ndim else w
        return Prediction((1 + g) * c.x0 - g * u.x0, (1 + g) * c.eps - g * u.eps, c.aux)

    return guided
