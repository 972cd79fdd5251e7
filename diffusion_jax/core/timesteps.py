"""Training-time distributions of t, with weights 1 / (T p(t)) that keep the loss's expectation that
of uniform t.

`lognormal`, `logit_normal`, `shifted` and `karras` are part of their papers' objectives instead:
their weights are 1. Example number i of a step draws from fold_in(key, i), so that it meets the
same t whatever the number of devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.components import component
from diffusion_jax.core.grids import noise_range
from diffusion_jax.core.noise import example_keys, threefry
from diffusion_jax.core.schedules.continuous import time_shifted
from diffusion_jax.core.settings import above, at_least, inside
from diffusion_jax.core.types import Schedule, Timesteps


def _stateless(sample) -> Timesteps:
    return Timesteps(init=lambda: (), sample=sample, update=lambda state, t, losses: state)


def _uniform_numbers(key, index):
    """A number in [0, 1) for every example, from its own key."""
    return jax.vmap(jax.random.uniform)(example_keys(key, index))


def _table(schedule: Schedule) -> int:
    if schedule.num_steps is None:
        raise ValueError("this distribution of t needs a table schedule")
    return schedule.num_steps


def _draw(probabilities, key, index):
    """Indices [B] by inversion of the distribution function, and their weights 1 / (T p)."""
    cumulative = jnp.cumsum(probabilities)
    t = jnp.searchsorted(cumulative, _uniform_numbers(key, index) * cumulative[-1], side="right")
    t = jnp.minimum(t, len(probabilities) - 1)
    return t, 1.0 / (len(probabilities) * probabilities[t])


@component
def uniform(schedule: Schedule) -> Timesteps:
    """t uniform over the table's indices, or over [t_min, t_max] in continuous time; weights 1 (Ho
    et al. 2020, alg. 1)."""

    def one(key):
        if schedule.num_steps is not None:
            return jax.random.randint(key, (), 0, schedule.num_steps)
        return jax.random.uniform(key, (), minval=schedule.t_min, maxval=schedule.t_max)

    def sample(state, key, index, total):
        return jax.vmap(one)(example_keys(key, index)), jnp.ones(index.shape)

    return _stateless(sample)


@component
def low_discrepancy(schedule: Schedule) -> Timesteps:
    """Uniform t for each example, evenly spread over a batch: (u + i / total) mod 1 (Kingma et al.
    2021, appendix I.1)."""

    def sample(state, key, index, total):
        u = (jax.random.uniform(threefry(key)) + index / total) % 1.0
        if schedule.num_steps is not None:
            t = jnp.minimum((u * schedule.num_steps).astype(jnp.int32), schedule.num_steps - 1)
        else:
            t = schedule.t_min + u * (schedule.t_max - schedule.t_min)
        return t, jnp.ones(index.shape)

    return _stateless(sample)


@component
def second_moment(schedule: Schedule, history: int = 10, uniform_part: float = 0.001) -> Timesteps:
    """p(t) ~ sqrt(E[L_t^2]) over the last `history` losses of each t, with a uniform part (Nichol &
    Dhariwal 2021, eq. 18).

    Uniform until every t has its full history. The state {"losses": [T, history], "counts": [T]} is
    updated with all examples of the step, in the order of their numbers, the same on all devices.

    Args:
      history: how many losses of each t are kept, at least 1.
      uniform_part: share of a uniform distribution in p, from 0 to 1.
    """
    num_steps = _table(schedule)
    at_least(1, history=history)
    inside(0, 1, uniform_part=uniform_part)

    def init():
        return {
            "losses": jnp.zeros((num_steps, history), jnp.float32),
            "counts": jnp.zeros((num_steps,), jnp.int32),
        }

    def sample(state, key, index, total):
        return _draw(second_moment_probabilities(state, uniform_part), key, index)

    def update(state, t, losses):
        # a row is the last `history` of its old losses and, after them, the new ones in their order
        order = jnp.argsort(t, stable=True)
        t, losses = t[order], losses[order]
        rank = jnp.arange(len(t)) - jnp.searchsorted(t, t)  # among the new ones of this t
        rows, counts = state["losses"], state["counts"]
        total = counts.at[t].add(1)
        shift = jnp.maximum(total - history, 0)
        source = jnp.minimum(jnp.arange(history) + shift[:, None], history - 1)
        column = counts[t] + rank - shift[t]
        column = jnp.where(column >= 0, column, history)  # pushed out by later ones: dropped
        moved = jnp.take_along_axis(rows, source, axis=1)
        return {
            "losses": moved.at[t, column].set(losses.astype(moved.dtype), mode="drop"),
            "counts": jnp.minimum(total, history),
        }

    return Timesteps(init, sample, update)


def second_moment_probabilities(state, uniform_part: float = 0.001) -> jax.Array:
    """p [T] of `second_moment`'s state; uniform while a history is not full."""
    losses, counts = state["losses"], state["counts"]
    root = jnp.sqrt(jnp.mean(losses**2, axis=-1))
    even = jnp.full(len(counts), 1.0 / len(counts))
    learned = (1.0 - uniform_part) * root / jnp.maximum(jnp.sum(root), 1e-37) + uniform_part * even
    return jnp.where(jnp.all(counts == losses.shape[-1]), learned, even)


@component
def score_norm(schedule: Schedule) -> Timesteps:
    """p(t) ~ E||grad log q(x_t | x0)||^2 / dim = 1 / sigma_t^2, the score's expected squared norm
    (Song et al. 2021, eq. 7)."""
    level = schedule.level(np.arange(_table(schedule)))
    inverse = 1.0 / np.asarray(level.sigma, np.float64) ** 2
    probabilities = jnp.asarray(inverse / inverse.sum(), jnp.float32)
    return _stateless(lambda state, key, index, total: _draw(probabilities, key, index))


def _normal_numbers(key, index):
    """A standard normal number for every example, from its own key."""
    return jax.vmap(jax.random.normal)(example_keys(key, index))


def _unweighted(schedule: Schedule, t_of, numbers=_normal_numbers) -> Timesteps:
    """t_of(numbers, normal ones unless others are named), clipped to the schedule's range and
    rounded to a table's indices; weights 1."""

    def sample(state, key, index, total):
        t = jnp.clip(t_of(numbers(key, index)), schedule.t_min, schedule.t_max)
        t = t if schedule.num_steps is None else jnp.round(t).astype(jnp.int32)
        return t, jnp.ones(index.shape)

    return _stateless(sample)


@component
def lognormal(schedule: Schedule, mean: float = -1.2, std: float = 1.2) -> Timesteps:
    """log(sigma / alpha) ~ N(mean, std^2), EDM's distribution of noise levels; weights 1 (Karras et
    al. 2022, table 1).

    Args:
      mean: mean of log(sigma / alpha), the paper's P_mean.
      std: standard deviation of log(sigma / alpha), above 0; the paper's P_std.
    """
    above(0, std=std)
    return _unweighted(schedule, lambda z: schedule.inverse(-2.0 * (mean + std * z)))


@component
def logit_normal(
    schedule: Schedule, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Timesteps:
    """t the sigmoid of N(mean, std^2), stretched over [t_min, t_max]; weights 1 (Esser et al. 2024,
    section 3.1).

    The shift of its eq. 23, of the sigmoid, adds log s to the mean: logit(s t / (1 + (s - 1) t)) =
    logit(t) + log s.

    Args:
      mean: mean of the normal number, above 0 for noisier t.
      std: standard deviation of the normal number, above 0.
      shift: s, above 0; sqrt(m / n) for images of m pixels, n those for which mean and std are
        right.
    """
    above(0, std=std, shift=shift)
    mean = mean + math.log(shift)
    low, width = schedule.t_min, schedule.t_max - schedule.t_min
    return _unweighted(schedule, lambda z: low + width * jax.nn.sigmoid(mean + std * z))


@component
def shifted(schedule: Schedule, shift: float = 3.0) -> Timesteps:
    """t = s u / (1 + (s - 1) u) of the way from t_min to t_max, u uniform; weights 1 (Esser et al.
    2024, eq. 23, for rectified flow).

    Args:
      shift: s, above 0; sqrt(m / n) for images of m pixels, n those for which a uniform t is right.
    """
    above(0, shift=shift)
    low, width = schedule.t_min, schedule.t_max - schedule.t_min

    def sample(state, key, index, total):
        t = low + width * time_shifted(_uniform_numbers(key, index), shift)
        t = t if schedule.num_steps is None else jnp.round(t).astype(jnp.int32)
        return t, jnp.ones(index.shape)

    return _stateless(sample)


@component
def karras(schedule: Schedule, rho: float = 7.0, most: float = 80.0) -> Timesteps:
    """(sigma / alpha)^(1 / rho) uniform, so that every interval of Karras's grid is met as often
    (Song et al. 2023, algorithm 2); weights 1.

    Args:
      rho: the exponent, above 0; the larger, the more clean levels.
      most: the largest sigma / alpha, above 0; at most the schedule's own.
    """
    above(0, rho=rho, most=most)
    low, high = (u ** (1.0 / rho) for u in noise_range(schedule, most))
    t_of = lambda z: schedule.inverse(-2.0 * rho * jnp.log(low + z * (high - low)))
    return _unweighted(schedule, t_of, _uniform_numbers)


TIMESTEPS = {
    "uniform": uniform,
    "low_discrepancy": low_discrepancy,
    "second_moment": second_moment,
    "score_norm": score_norm,
    "lognormal": lognormal,
    "logit_normal": logit_normal,
    "shifted": shifted,
    "karras": karras,
}
OBJECTIVES = (
    "lognormal",
    "logit_normal",
    "shifted",
    "karras",
)  # weights 1: the objective is the mean over them
