"""Optimizers: factories of optax transformations."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.core.components import component


class LearningRate(Protocol):
    """step -> learning rate."""

    def __call__(self, step: Any, /) -> Any: ...


def _check(b1: float, b2: float) -> None:
    for name, value in (("b1", b1), ("b2", b2)):
        if not 0.0 <= value < 1.0:
            raise ValueError(f"{name} must be at least 0 and below 1, not {value}")


@component
def adam(
    learning_rate: LearningRate, b1: float = 0.9, b2: float = 0.999
) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, algorithm 1).

    Args:
      b1: decay of the gradient's mean, at least 0, below 1.
      b2: decay of the gradient's square, at least 0, below 1.
    """
    _check(b1, b2)
    return optax.adam(learning_rate, b1, b2)


@component
def adamw(
    learning_rate: LearningRate, b1: float = 0.9, b2: float = 0.999, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Args:
      b1: decay of the gradient's mean, at least 0, below 1.
      b2: decay of the gradient's square, at least 0, below 1.
      weight_decay: the share, times the learning rate, by which parameters shrink a step; at
        least 0.
    """
    _check(b1, b2)
    if weight_decay < 0:
        raise ValueError(f"weight_decay must be at least 0, not {weight_decay}")
    return optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay)


OPTIMIZERS = {"adam": adam, "adamw": adamw}


def inverse_sqrt(learning_rate: float, after: int, before: int) -> Any:
    """count -> learning_rate / sqrt(max(t / after, 1)) at the step t = before + count."""

    def rate(count):
        t = jnp.asarray(count, jnp.float32) + before
        return learning_rate * jax.lax.rsqrt(jnp.maximum(t / after, 1.0))

    return rate


@component
def scheduled(
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    decay: str = "constant",
    decay_after: int = 70_000,
) -> Callable:
    """step -> learning rate: rising from 0 over the warm-up, then constant, by a cosine or linearly
    to 0 at the last step, or from the step `decay_after` on by the inverse square root of the step
    (Karras et al. 2024, eq. 67)."""
    if decay == "constant":
        after = optax.constant_schedule(learning_rate)
    elif decay == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, max(num_steps - warmup_steps, 1))
    elif decay == "linear":
        after = optax.linear_schedule(learning_rate, 0.0, max(num_steps - warmup_steps, 1))
    else:
        after = inverse_sqrt(learning_rate, decay_after, warmup_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def of_two(
    optimizer: optax.GradientTransformation, name: str = "critic"
) -> optax.GradientTransformation:
    """The optimizer once for the parameters of that top-level name and once for the others, so that
    neither's gradients are clipped by the other's norm; itself for all where there are none."""
    label = lambda params: {top: name if top == name else "network" for top in params}
    return optax.multi_transform({name: optimizer, "network": optimizer}, label)
