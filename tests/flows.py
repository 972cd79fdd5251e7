"""What the tests of flow maps share: Gaussian data on straight paths, whose flow map is known."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.codecs.codec import Codec
from diffusion_jax.conditioning import joined, label, second_time
from diffusion_jax.core import predictions, schedules, timesteps
from diffusion_jax.core.second_time import NAME
from diffusion_jax.core.waves import WAVES
from diffusion_jax.data.spec import Declared
from diffusion_jax.objectives import Problem

FLOW = schedules.rectified_flow(t_max=1.0)


def problem(shape=(1,), dropout=0.0, classes=0, **more) -> Problem:
    """A problem of data as they are, told a second time."""
    schedule = more.pop("schedule", FLOW)
    told = [label(Declared(shape, classes), dropout), second_time()]
    return Problem(
        schedule=schedule,
        parameterization=more.pop("parameterization", predictions.flow()),
        timesteps=more.pop("timesteps", timesteps.logit_normal(schedule, -0.4)),
        codec=Codec(lambda p, k, d: d, lambda p, x: x, shape, None, bins=None),
        conditioner=more.pop("conditioner", joined(told)),
        **more,
    )


def second_of(cond):
    """The t of a rectified flow that the first wave of a second time stands for, [B]."""
    angle = jnp.arctan2(cond[NAME][:, WAVES], cond[NAME][:, 0]) / 2
    return jnp.sin(angle) / (jnp.sin(angle) + jnp.cos(angle))


def deviation(t, std):
    """Of x at t."""
    return jnp.sqrt(((1 - t) * std) ** 2 + t**2)


def average_velocity(x, t, r, mean, std):
    """Of the flow of N(mean, std^2) from r to t [B], at x [B, D]: of x less its mean the share
    1 - d(r) / d(t) is left behind, d the deviation."""
    t, r = (a.reshape(-1, 1) for a in (t, r))
    both = deviation(t, std) + deviation(r, std)
    rate = (t + r + std**2 * (t + r - 2)) / both / deviation(t, std)
    return rate * (x - (1 - t) * mean) - mean


def mapped(x, t, r, mean, std):
    """x at t brought to r."""
    ratio = deviation(r, std) / deviation(t, std)
    return (1 - r) * mean + ratio * (x - (1 - t) * mean)


def exact(params, x, t, cond, dropout_key=None):
    """The network that is right at a = 1 and b = 0, of N(mean, std^2)."""
    u = average_velocity(x, t, second_of(cond), params["mean"], params["std"])
    return params["a"] * u + params["b"]


def right(count, mean=0.7, std=0.5, a=1.0, b=0.0):
    """Parameters of `exact`, one set an example."""
    known = {"a": a, "b": b, "mean": mean, "std": std}
    return {name: np.full((count, 1), value) for name, value in known.items()}


def data(count, mean=0.7, std=0.5, size=1):
    draws = np.random.default_rng(0).normal(size=(count, size))
    return {"image": mean + std * draws, "label": np.arange(count) % 2}
