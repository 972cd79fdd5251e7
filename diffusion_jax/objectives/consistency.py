"""Consistency models: networks that take any point of a path of the probability-flow ODE to its
end, learned from two neighbours of a path (Song et al. 2023; Song & Dhariwal 2024; Geng et al.
2024).

The consistency function f(x, t) is the denoiser's x0, of any prediction whose x0 at sigma = 0 is x
itself. Both of a pair have the same noise and the same dropout; u is sigma / alpha."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from diffusion_jax.core.components import component
from diffusion_jax.core.grids import at_logsnr, noise_range
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.settings import above, at_least, one_of
from diffusion_jax.core.types import CLEAN, Denoiser, Level, Schedule, expand
from diffusion_jax.likelihood.variational import mean_flat
from diffusion_jax.objectives.objective import Objective, Problem, denoiser, noised, with_times
from diffusion_jax.objectives.teachers import check_guided, learning, teacher_of
from diffusion_jax.samplers.edm import heun
from diffusion_jax.samplers.first_order import ddim

Metric = Literal["huber", "l2", "l1"]
Solver = Literal["heun", "ddim"]
Target = Literal["ema", "student"]


def check_consistent(problem: Problem, trains_variance: bool) -> None:
    """Raises ValueError for a problem whose x0 is no consistency function at sigma = 0, whose
    weighting would be left out, or whose learned variance would stay untrained."""
    one = jnp.ones(1)
    clean = Level(*(jnp.asarray(a) for a in CLEAN))
    if not bool(jnp.all(problem.parameterization.x0(jnp.zeros(1), one, clean) == one)):
        raise ValueError(
            f"a consistency model's x0 is x itself at sigma = 0, which {problem.parameterization} "
            "does not see to; take v, eps, flow, score or edm"
        )
    if problem.weighting is not None:
        raise ValueError("diffusion.weighting is of denoising's errors; consistency has its own")
    if trains_variance and problem.variance == "learned_range":
        raise ValueError("consistency trains no variance: set model.learned_variance=false")


def distances(metric: str, c: float) -> Callable[[Any, Any], jax.Array]:
    """(a, b [B, ...]) -> [B]: the mean square, the mean absolute error, or the pseudo-Huber
    distance sqrt(mean square + c^2) - c, which for c = C / sqrt(D) is Song & Dhariwal 2024's with C
    over the square root of the D numbers."""
    one_of(get_args(Metric), metric=metric)
    above(0, c=c)

    def huber(a, b):
        square = mean_flat(jnp.square(a - b))
        return square / (jnp.sqrt(square + c**2) + c)  # no difference of near numbers

    l2, l1 = lambda a, b: mean_flat(jnp.square(a - b)), lambda a, b: mean_flat(jnp.abs(a - b))
    return {"huber": huber, "l2": l2, "l1": l1}[metric]


def ratio(level: Level) -> jax.Array:
    """u = sigma / alpha."""
    return level.sigma / level.with_signal().alpha


def at_ratio(schedule: Schedule, u: Any) -> Level:
    """The level of a sigma / alpha, of those that the network sees the nearest."""
    return at_logsnr(schedule, -2.0 * jnp.log(u))


def neighbours(
    schedule: Schedule, t: Level, levels: Any, rho: float, ends: tuple[float, float]
) -> tuple[Level, Level, jax.Array]:
    """(the noisier, the cleaner of the two levels that t [B] lies between, whether the latter is
    the cleanest), of `levels` ones with u^(1 / rho) evenly spread between two u (Karras et al.
    2022, eq. 5). levels may be traced."""
    low, high = (u ** (1.0 / rho) for u in ends)
    width = (high - low) / (levels - 1.0)
    place = (jnp.exp(-0.5 / rho * t.with_signal().logsnr) - low) / width
    index = jnp.clip(jnp.floor(place), 0.0, levels - 2.0)
    noisier, cleaner = (at_ratio(schedule, (low + i * width) ** rho) for i in (index + 1.0, index))
    return noisier, cleaner, index == 0.0


def compared(student: Denoiser, target: Denoiser, of: tuple, to: tuple, ends: Any, end: Any):
    """(f(x_t, t), what it shall be): of = (x_t, t), to = (x_s, s). The target is that of f(x_s, s),
    or `end`, x_s / alpha_s, where `ends` [B]: there f is x0 itself."""
    there = jnp.where(expand(ends, of[0].ndim), end, target(*to).x0)
    return student(*of).x0, jax.lax.stop_gradient(there)


def report_of(t: Level, here: jax.Array, there: jax.Array) -> dict[str, jax.Array]:
    """What is logged: the mean square distance of f at both ends, of no weight."""
    return {"logsnr": t.logsnr, "distance": mean_flat(jnp.square(here - there))}


@component
def consistency_distillation(
    problem: Problem,
    levels: int = 18,
    solver: Solver = "heun",
    target: Target = "ema",
    metric: Metric = "l2",
    guidance: float = 0.0,
    huber: float = 0.00054,
    rho: float = 7.0,
    most: float = 80.0,
) -> Objective:
    """Consistency distillation: f agrees at the ends of one step of a teacher's ODE (Song et al.
    2023, algorithm 2).

    A drawn t stands for the interval of the grid that it lies in: timesteps=karras gives every
    interval the same share, as in the paper. At the cleanest level the target is x / alpha.

    Args:
      levels: N, the levels of the grid, at least 2.
      solver: of the step: heun, two calls of the teacher, or ddim, one.
      target: whose f is the target: ema, the averaged network's, or student, its own, held.
      metric: of the two: l2, the mean square; l1; huber, sqrt(mean square + huber^2) - huber.
      guidance: the weight w of classifier-free guidance by which the teacher steps, at least 0.
      huber: in huber, above 0.
      rho: of the grid, sigma / alpha to the power 1 / rho being even; above 0.
      most: the grid's largest sigma / alpha, above 0; at most the schedule's own.
    """
    at_least(2, levels=levels)
    at_least(0, guidance=guidance)
    above(0, rho=rho, most=most)
    one_of(get_args(Solver), solver=solver)
    one_of(get_args(Target), target=target)
    check_consistent(problem, False)
    distance = distances(metric, huber)
    span = noise_range(problem.schedule, most)
    if guidance:
        check_guided(problem)
    step = {"heun": heun, "ddim": ddim}[solver]().step

    def loss(params, aux, context, batch):
        x0, eps, drawn, cond = noised(problem, context, batch)
        t, s, ends = neighbours(problem.schedule, drawn, levels, rho, span)
        teacher = teacher_of(problem, aux, context, cond, guidance)
        x_t = q_sample(x0, eps, t)
        x_s, _ = step(None, teacher, x_t, (), t, s)
        followed = jax.lax.stop_gradient(params) if target == "student" else context.ema_params
        here, there = compared(
            denoiser(problem, params, context, cond),
            denoiser(problem, followed, context, cond),
            (x_t, t),
            (x_s, s),
            ends,
            x_s / s.expand(x_s.ndim).alpha,
        )
        return distance(here, there), report_of(t, here, there)

    return learning(problem.timesteps, loss)._replace(mean=False)


def training_levels(step: Any, steps: int, first: int, last: int) -> jax.Array:
    """N(k), the levels of the grid at a step: first + 1, doubled at equal intervals to last + 1
    (Song & Dhariwal 2024, section 3.4)."""
    doublings = int(math.log2(last // first))
    each = max(1, steps // (doublings + 1))
    times = jnp.minimum(jnp.asarray(step) // each, doublings + 1)
    return jnp.minimum(first * 2.0**times, last) + 1.0


@component
def consistency_training(
    problem: Problem,
    steps: int = 400_000,
    first: int = 10,
    last: int = 1280,
    metric: Metric = "huber",
    huber: float = 0.00054,
    rho: float = 7.0,
    most: float = 80.0,
) -> Objective:
    """Improved consistency training, iCT: f agrees at two levels of the same data and noise, with
    no teacher (Song & Dhariwal 2024; Song et al. 2023, algorithm 3).

    A drawn t stands for the interval of the grid that it lies in: timesteps=lognormal with mean
    -1.1 and std 2.0 are the paper's. The weight is one over the interval's length in sigma / alpha,
    the target the network's own f, held; at the cleanest level it is x / alpha.

    Args:
      steps: of the whole training, over which the grid becomes finer; at least 1.
      first: the intervals of the grid at first, the paper's s0, at least 1.
      last: the most intervals, the paper's s1, at least first.
      metric: huber, sqrt(mean square + huber^2) - huber; l2, the mean square; l1.
      huber: in huber, above 0: the paper's c over the square root of the data's numbers.
      rho: of the grid, sigma / alpha to the power 1 / rho being even; above 0.
      most: the grid's largest sigma / alpha, above 0; at most the schedule's own.
    """
    at_least(1, steps=steps, first=first)
    at_least(first, last=last)
    above(0, rho=rho, most=most)
    check_consistent(problem, True)
    distance, span = distances(metric, huber), noise_range(problem.schedule, most)

    def loss(params, aux, context, batch):
        x0, eps, drawn, cond = noised(problem, context, batch)
        levels = training_levels(context.step, steps, first, last)
        t, s, ends = neighbours(problem.schedule, drawn, levels, rho, span)
        x_s = q_sample(x0, eps, s)
        here, there = compared(
            denoiser(problem, params, context, cond),
            denoiser(problem, jax.lax.stop_gradient(params), context, cond),
            (q_sample(x0, eps, t), t),
            (x_s, s),
            ends,
            x_s / s.expand(x_s.ndim).alpha,
        )
        weight = 1.0 / (ratio(t) - ratio(s))
        return weight * distance(here, there), report_of(t, here, there)

    return with_times(problem.timesteps, loss)._replace(mean=False)


@component
def easy_consistency(
    problem: Problem,
    stage_steps: int = 10_000,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    stages: int = 8,
    huber: float = 0.00054,
) -> Objective:
    """Easy consistency tuning, ECT: a diffusion model becomes a consistency model by looking at
    ever nearer levels r < t of the same data and noise (Geng et al. 2024).

    Of sigma / alpha, r = t (1 - (1 + k sigmoid(-b t)) / q^a) in stage a, at least 0, where the
    target is the data. The loss is sqrt(mean square + huber^2) - huber over t - r. The run starts
    from another's network, `training.init`; timesteps=lognormal with mean -1.1 and std 2.0 are the
    paper's.

    Args:
      stage_steps: of a stage, at least 1: a is 1 + step // stage_steps.
      q: by which t - r shrinks from a stage to the next, above 1.
      k: how much larger (t - r) / t is where it is clean, at least 0.
      b: the larger, the sooner in t that ends, above 0.
      stages: the last a, at least 1.
      huber: above 0; times the square root of the data's numbers it is the paper's c.
    """
    at_least(1, stage_steps=stage_steps, stages=stages)
    at_least(0, k=k)
    above(1, q=q)
    above(0, b=b)
    check_consistent(problem, False)
    distance = distances("huber", huber)
    clean, _ = noise_range(problem.schedule)

    def loss(params, aux, context, batch):
        x0, eps, t, cond = noised(problem, context, batch)
        stage = jnp.minimum(context.step // stage_steps + 1, stages)
        u = ratio(t)
        r = u * jnp.maximum(1.0 - (1.0 + k * jax.nn.sigmoid(-b * u)) / q**stage, 0.0)
        r = jnp.where(r > clean, r, 0.0)
        s = at_ratio(problem.schedule, jnp.maximum(r, clean))
        here, there = compared(
            denoiser(problem, params, context, cond),
            denoiser(problem, jax.lax.stop_gradient(params), context, cond),
            (q_sample(x0, eps, t), t),
            (q_sample(x0, eps, s), s),
            r == 0.0,
            x0,
        )
        return distance(here, there) / (u - r), report_of(t, here, there)

    return with_times(problem.timesteps, loss)._replace(teacher=True, mean=False)
