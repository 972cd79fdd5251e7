"""Progressive distillation: a student takes in one step what its teacher takes in two (Salimans &
Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models")."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import grids
from diffusion_jax.core.components import component
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.settings import at_least
from diffusion_jax.core.types import CLEAN, Array, Denoiser, Level, Schedule
from diffusion_jax.likelihood.variational import mean_flat
from diffusion_jax.objectives.losses import target_factor
from diffusion_jax.objectives.objective import Objective, Problem, denoiser, noised
from diffusion_jax.objectives.teachers import check_guided, learning, teacher_of, weight_of

LENGTH = 1024  # to which hops are filled up, so that the rounds of a distillation are one program
LEAST_SIGNAL = 0.01  # share of an error of x0 that the network's output must show at pure noise


class Hops(NamedTuple):
    """The N steps of a student, from the cleanest: from the level `t`, [N], the teacher goes to
    `middle` and on; share, [N]: that of its second prediction in the student's target."""

    t: Level
    middle: Level
    share: Array


def hops(schedule: Schedule, steps: int) -> Hops:
    """The steps of the grid `trailing` of as many levels, whose last one goes to clean data.

    The middles are the other levels of the grid of twice as many; where a table has not as many
    indices, they lie between these."""
    t = grids.trailing(schedule, steps)
    if schedule.num_steps is None or 2 * steps <= schedule.num_steps:
        middle = jax.tree.map(lambda a: a[1::2], grids.trailing(schedule, 2 * steps))
    else:
        between = (np.arange(steps, 0, -1) - 0.5) / steps * schedule.num_steps - 1.0
        middle = schedule.level(np.maximum(between, 0.0))
    t, middle = jax.tree.map(lambda a: np.asarray(a, np.float64), (t, middle))
    share = _share(t, middle, jax.tree.map(lambda a, clean: np.append(a[1:], clean), t, CLEAN))
    flipped = lambda a: jnp.asarray(np.asarray(a)[::-1], float)
    return jax.tree.map(flipped, Hops(t, middle, share))


def _share(t: Level, middle: Level, s: Level) -> np.ndarray:
    """Of the second of two predictions x1, x2 in the x0 whose one DDIM step from t to s ends where
    two steps through the middle end.

    A step is linear in x / sigma over r = alpha / sigma, so that z_s / sigma_s = z_t / sigma_t +
    (r_m - r_t) x1 + (r_s - r_m) x2. Times sigma_s, which may be 0."""
    part = lambda level: s.alpha - s.sigma * level.alpha / level.sigma
    return part(middle) / part(t)


def target(teacher: Denoiser, z: Array, t: Level, middle: Level, share: Array) -> jax.Array:
    """The x0 whose one DDIM step from t ends where the teacher's two end (Salimans & Ho 2022,
    algorithm 2; its appendix G).

    That is (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t), written as a
    mean of both predictions, which keeps its digits where the levels are near and holds at s =
    clean. z: [B, ...]; the levels and share: [B]."""
    first, inner = teacher(z, t), middle.expand(z.ndim)
    second = teacher(inner.alpha * first.x0 + inner.sigma * first.eps, middle)
    share = share.reshape(inner.alpha.shape)
    return jax.lax.stop_gradient(first.x0 + share * (second.x0 - first.x0))


@component
def progressive(problem: Problem, steps: int = 4, guidance: float = 0.0) -> Objective:
    """The error of x0 against that of two DDIM steps of the teacher, at the levels of the student's
    steps (Salimans & Ho 2022, algorithm 2).

    t is drawn as diffusion.timesteps says and moved up to the next level. The error is weighted by
    max(snr, 1), or by diffusion.weighting: v is the paper's snr + 1. With `sampling.sampler=ddim`,
    `sampling.grid=trailing` and as many `sampling.steps` the student meets the levels of its
    training. A run that is told guidance_weight tells its teacher, too.

    Args:
      steps: N, the student's number of steps, at least 1; its teacher's is 2 N.
      guidance: weight w by which the teacher is guided, in two calls; 0 for none.
    """
    at_least(1, steps=steps)
    at_least(0, guidance=guidance)
    if guidance:
        check_guided(problem)
    _check_decodes(problem)
    weighting, found = weight_of(problem), hops(problem.schedule, steps)
    filled = lambda a: jnp.pad(a, (0, max(LENGTH - steps, 0)), mode="edge")

    def loss(params, aux, context, batch):
        x0, eps, _, cond = noised(problem, context, batch)
        known: Hops = aux["hops"]
        index = jnp.searchsorted(known.t.t, jnp.asarray(context.t, known.t.t.dtype))
        t, middle, share = jax.tree.map(lambda a: a[jnp.minimum(index, len(a) - 1)], known)
        z = q_sample(x0, eps, t)
        teacher = teacher_of(problem, aux, context, cond, guidance)
        student = denoiser(problem, params, context, cond)(z, t).x0
        error = mean_flat(jnp.square(student - target(teacher, z, t, middle, share)))
        return weighting(t) * error, {"logsnr": t.logsnr, "x0_error": error}

    made = learning(problem.timesteps, loss, {"hops": jax.tree.map(filled, found)})
    return made._replace(mean=False)


def _check_decodes(problem: Problem) -> None:
    """Raises ValueError where x0 at pure noise would be the network's error many times over."""
    noisiest = problem.schedule.level(problem.schedule.t_max).with_signal()
    if float(target_factor(problem.parameterization, noisiest)) < LEAST_SIGNAL**2:
        raise ValueError(
            "a step from pure noise needs a prediction that x0 can be had from there: train on "
            "with config.diffusion.prediction=v and config.training.init=WORKDIR, and distil that "
            "run"
        )
