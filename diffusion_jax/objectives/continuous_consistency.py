"""Consistency in continuous time: the derivative along a path of what its end is said to be
vanishes (Lu & Song 2024, sCM)."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from diffusion_jax.core.components import component
from diffusion_jax.core.schedules.continuous import alpha_of
from diffusion_jax.core.settings import above, at_least, one_of
from diffusion_jax.core.types import Denoiser, Level, Schedule, expand
from diffusion_jax.likelihood.variational import mean_flat
from diffusion_jax.objectives.consistency import check_consistent
from diffusion_jax.objectives.objective import Objective, Problem, denoiser, noised, with_times
from diffusion_jax.objectives.teachers import TEACHER, teacher_of
from diffusion_jax.objectives.uncertainty import first_variance, learned_variance, log_variance

Path = Literal["teacher", "data"]


def on_circle(logsnr, schedule: Schedule, sigma_data: float, ndim: int):
    """(cos, sin of TrigFlow's angle theta, tan theta = sigma / (alpha sigma_data), expanded to ndim
    axes, and the schedule's level) of a log-SNR [B].

    The level's alpha and sigma follow from the log-SNR, not from t, whose derivative a table has
    not at its indices."""
    t = schedule.inverse(logsnr)
    near = schedule.level(t)
    size = jnp.hypot(near.alpha, near.sigma)
    turned = logsnr + 2.0 * jnp.log(sigma_data)
    level = Level(t, size * alpha_of(logsnr), size * alpha_of(-logsnr))
    return expand(alpha_of(turned), ndim), expand(alpha_of(-turned), ndim), level


def velocity(denoise: Denoiser, schedule: Schedule, sigma_data: float):
    """(x [B, ...], log-SNR [B]) -> F, the velocity dx / d theta that a denoiser stands for, of x =
    cos(theta) x0 / sigma_data + sin(theta) eps: x0 = sigma_data (cos(theta) x - sin(theta) F) (Lu &
    Song 2024, section 3)."""

    def F(x, logsnr):
        cos, sin, level = on_circle(logsnr, schedule, sigma_data, x.ndim)
        x0 = denoise(level.expand(x.ndim).alpha * sigma_data / cos * x, level).x0
        return (cos * x - x0 / sigma_data) / sin

    return F


def tangent(F, x, logsnr, slope, cos, sin, share):
    """(F(x), cos(theta) d f / d theta over sigma_data, its second term times share), both [B, ...],
    f = x0 along a path of the slope dx / d theta (Lu & Song 2024, section 4 and algorithm 1).

    The derivative of F is forward, of sin cos d / d theta = d / d log tan(theta), so that it is
    that in -logsnr / 2, which has no pole at either end."""
    here, change = jax.jvp(F, (x, logsnr), (cos * sin * slope, jnp.full_like(logsnr, -2.0)))
    held, change = jax.lax.stop_gradient((here, change))
    return here, -(cos**2) * (held - slope) - share * (cos * sin * x + change)


@component
def continuous_consistency(
    problem: Problem,
    path: Path = "teacher",
    warmup: int = 10_000,
    c: float = 0.1,
    sigma_data: float = 1.0,
    features: int = 128,
    learning_rate: float = 0.01,
) -> Objective:
    """Consistency in continuous time, sCM: distillation sCD along a teacher's paths, or training
    sCT along the data's (Lu & Song 2024, algorithm 1).

    The loss is |F - F_held - g / (|g| + c)|^2 / D, g the tangent, weighted by a function of the
    noise level that is trained beside, as in `uncertainty`. The run starts from another's network,
    `training.init`; timesteps=lognormal with mean -1 and std 1.4 are the paper's for CIFAR-10. The
    network's t must be embedded smoothly: see model.time_scale.

    Args:
      path: whose slope the tangent follows: teacher, the network that the run starts from, or data,
        that of the data and their noise.
      warmup: the steps over which the tangent's second term, with the derivative of the network,
        comes in; at least 0. The paper's is 10,000.
      c: added to the tangent's norm, by which it is divided, above 0.
      sigma_data: the data's standard deviation, above 0; 1 puts TrigFlow's angle where a
        variance-preserving schedule's is.
      features: Fourier features of the noise level, at least 1.
      learning_rate: of the weight's function, above 0.
    """
    one_of(get_args(Path), path=path)
    at_least(0, warmup=warmup)
    above(0, c=c, sigma_data=sigma_data, features=features, learning_rate=learning_rate)
    check_consistent(problem, False)
    schedule = problem.schedule

    def on_batch(params, aux, context, batch):
        x0, eps, level, cond = noised(problem, context, batch)
        logsnr = jnp.clip(level.with_signal().logsnr, -40.0, 40.0)
        cos, sin, _ = on_circle(logsnr, schedule, sigma_data, x0.ndim)
        x = cos / sigma_data * x0 + sin * eps
        if path == "teacher":
            teacher = teacher_of(problem, aux, context, cond)
            slope = velocity(teacher, schedule, sigma_data)(x, logsnr)
        else:
            slope = cos * eps - sin / sigma_data * x0
        F = velocity(denoiser(problem, params, context, cond), schedule, sigma_data)
        begun = jnp.minimum(1.0, context.step / max(warmup, 1))
        share = begun if warmup and context.training else 1.0
        here, g = tangent(F, x, logsnr, slope, cos, sin, share)
        size = jnp.sqrt(x0[0].size * mean_flat(jnp.square(g)))
        step = g / expand(size + c, x0.ndim)
        error = mean_flat(jnp.square(here - jax.lax.stop_gradient(here) - step))
        u = log_variance(aux["u"], logsnr)
        of = {"logsnr": logsnr, "error": error, "u": u}
        return error * jnp.exp(-u) + u, of | {"distance": mean_flat(jnp.square(g))}

    timed = with_times(problem.timesteps, on_batch)

    def init(key, params):
        teacher = {TEACHER: params} if path == "teacher" else {}
        return timed.init(key, params) | first_variance(features) | teacher

    def update(aux, state, report):
        new = timed.update(aux, state, report) | learned_variance(aux, state, report, learning_rate)
        return aux | new

    return Objective(init, timed.sample, on_batch, update, teacher=True, mean=False)
