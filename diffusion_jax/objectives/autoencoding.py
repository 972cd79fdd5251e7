"""Reconstruction through latents: the objective of autoencoders (Rombach et al. 2022, appendix G;
Esser et al. 2021, section 3.1)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core.components import component
from diffusion_jax.core.latents import Latents, kl_to_standard, normal_of
from diffusion_jax.core.noise import fold_in, normal
from diffusion_jax.core.settings import above, at_least
from diffusion_jax.core.types import PyTree
from diffusion_jax.objectives.adversarial import (
    adaptive_weight,
    hinge,
    kernel_gradients,
    linearised,
    per_example,
)
from diffusion_jax.objectives.codebooks import codebooks
from diffusion_jax.objectives.objective import Objective, Problem, method

CRITIC = "critic"  # of the parameters


class Perceptual(NamedTuple):
    """A distance of images that a network of others' weights computes.

    load: file -> its weights. distance: (weights, x, y [B, H, W, 3] in [-1, 1]) -> [B]."""

    load: Callable[[str], PyTree]
    distance: Callable[[PyTree, jax.Array, jax.Array], jax.Array]


def point(latents: Latents, encoded: jax.Array) -> jax.Array:
    """The latents [B, h, w, c] that an image is reconstructed from: the mean of a distribution."""
    return normal_of(encoded)[0] if latents.regularizer == "kl" else encoded


@component
def autoencoding(
    problem: Problem,
    latents: Latents,
    perceptual: Perceptual,
    l1_weight: float = 1.0,
    l2_weight: float = 1.0,
    kl_weight: float = 1e-6,
    commitment: float = 0.25,
    codebook: Literal["ema", "loss"] = "ema",
    decay: float = 0.99,
    revive: float = 0.1,
    perceptual_file: str = "",
    perceptual_weight: float = 1.0,
    critic_weight: float = 0.5,
    critic_start: int = 50_000,
    adaptive: bool = True,
) -> Objective:
    """The error of a reconstruction, what its latents cost and, from a step on, what a critic says
    of it (Rombach et al. 2022, appendix G).

    The error is L1 and L2, means over an image's numbers, and, where a file of weights is named, a
    perceptual distance (Zhang et al. 2018). The sums of the original are over an image; divided by
    its numbers, all weights mean the same here. The critic, `config.model.critic`, learns by hinge
    losses of its own, and neither the network by the critic's loss nor the critic by the network's.
    t and the schedule mean nothing to it.

    Args:
      l1_weight: of the mean absolute error, at least 0.
      l2_weight: of the mean square error, at least 0; one of the two is above.
      kl_weight: of kl's divergence from N(0, 1), in nats over the numbers of an image; at least 0.
      commitment: of vq's vectors to their codes, at least 0.
      codebook: how vq's codes follow their vectors: ema, moving averages, or loss, by gradient.
      decay: of the averages of codes' sizes and sums, at least 0, below 1; sizes start at 1.
      revive: a code of a smaller average size becomes a vector of the batch; 0 never.
      perceptual_file: VGG16 with LPIPS' linear layers, .pt, .safetensors or .npz; empty for none.
      perceptual_weight: of the distance by that file, at least 0.
      critic_weight: of the critic's term in the network's loss, at least 0.
      critic_start: the step from which on the critic learns and has a say, at least 0.
      adaptive: multiply critic_weight by the ratio of the gradients' norms, of the error and of the
        critic's term, in the decoder's last layer, as the step before found it.
    """
    at_least(0, l1_weight=l1_weight, l2_weight=l2_weight, kl_weight=kl_weight)
    at_least(0, commitment=commitment, revive=revive, critic_start=critic_start)
    at_least(0, perceptual_weight=perceptual_weight, critic_weight=critic_weight)
    above(0, **{"l1_weight + l2_weight": l1_weight + l2_weight})
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must be at least 0 and below 1, not {decay}")
    if problem.weighting is not None:
        raise ValueError("diffusion.weighting is of losses by noise level, not of autoencoding")
    if perceptual_file and problem.codec.shape[-1] != 3:
        raise ValueError("the perceptual distance is of images of 3 channels")
    averaged, codec = codebook == "ema", problem.codec
    codes = codebooks(latents, commitment, averaged, decay, revive)
    sees = bool(perceptual_file) and perceptual_weight > 0

    def init(key, params):
        aux: dict[str, Any] = {}
        if codes:
            aux["codes"] = codes.init(key, params)
        if sees:
            aux["perceptual"] = perceptual.load(perceptual_file)
        if latents.critic and adaptive:
            aux["adaptive"] = jnp.zeros(())
        return aux

    def sample(aux, key, index, total):
        return jnp.zeros(index.shape), jnp.ones(index.shape)

    def latents_of(params, aux, keys, encoded, numbers):
        """(latents, their cost [B], report); numbers: those of an image."""
        if latents.regularizer == "kl":
            mean, log_variance = normal_of(encoded)
            noise = normal(fold_in(keys, 0), mean.shape[1:])
            kl = kl_to_standard(mean, log_variance).reshape(len(mean), -1).sum(axis=1)
            z = mean + jnp.exp(0.5 * log_variance) * noise
            return z, kl_weight * kl / numbers, {"kl": kl}
        if codes:
            return encoded, *codes.loss(params, aux["codes"], encoded)
        return encoded, 0.0, {}

    def errors(aux, x):
        """y -> (losses [B], report)."""

        def of(y):
            report = {"l1": per_example(jnp.abs(x - y)), "l2": per_example(jnp.square(x - y))}
            found = l1_weight * report["l1"] + l2_weight * report["l2"]
            if sees:
                report["perceptual"] = perceptual.distance(aux["perceptual"], x, y)
                found += perceptual_weight * report["perceptual"]
            return found, report

        return of

    def judged(params, aux, context, x, y, h, error_slope):
        """(the losses of network and critic [B], report), from the critic's first step on."""
        judge, stop = method(context.apply_fn, "judge"), jax.lax.stop_gradient
        held = stop(params)
        term, slope = linearised(lambda y: -per_example(judge(held, y)), y)
        real, fake = judge(params, stop(x)), judge(params, stop(y))
        loss = hinge(real, fake)
        report = {"critic": loss, "real": per_example(real), "fake": per_example(fake)}
        weight = critic_weight
        if adaptive:
            h = stop(h)
            pair = (kernel_gradients(h, error_slope), kernel_gradients(h, slope))
            report |= {"error_slope": pair[0], "critic_slope": pair[1]}
            report["adaptive"] = jnp.full(len(y), aux["adaptive"])
            weight = weight * aux["adaptive"]
        on = jnp.where(context.step >= critic_start, 1.0, 0.0)
        return on * (weight * term + loss), report

    def loss(params, aux, context, batch):
        x = codec.encode(codec.params, fold_in(context.keys, 3), batch[problem.entry])
        encoded = method(context.apply_fn, "encode")(params, x)
        z, cost, report = latents_of(params, aux, context.keys, encoded, x[0].size)
        y, h = method(context.apply_fn, "decode")(params, z, True)
        error = errors(aux, x)
        if not (latents.critic and context.training):
            found, of_error = error(y)
            return found + cost, report | of_error
        found, slope = linearised(lambda y: error(y)[0], y)
        report |= error(jax.lax.stop_gradient(y))[1]
        more, of_critic = judged(params, aux, context, x, y, h, slope)
        return found + cost + more, report | of_critic

    def update(aux, state, report):
        aux = dict(aux)
        if codes:
            aux["codes"] = codes.update(aux["codes"], report)
        if "adaptive" in aux:
            aux["adaptive"] = adaptive_weight(report["error_slope"], report["critic_slope"])
        return aux

    def after(params, aux, report):
        assert codes is not None and codes.after is not None
        return codes.after(params, aux["codes"], report)

    def reconstruct(apply_fn, params, x0):
        encoded = method(apply_fn, "encode")(params, x0)
        return method(apply_fn, "decode")(params, point(latents, encoded))

    moves = codes is not None and codes.after is not None and (averaged or revive > 0)
    return Objective(init, sample, loss, update, after if moves else None, reconstruct)
