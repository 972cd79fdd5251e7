"""What objectives that learn from a teacher share."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from diffusion_jax.core.types import Cond, Denoiser, PyTree, Timesteps
from diffusion_jax.core.weightings import truncated_snr
from diffusion_jax.denoisers import classifier_free, make_denoiser
from diffusion_jax.objectives.objective import Context, Objective, Problem, with_times

TEACHER = "teacher"  # of aux: the trained network's parameters


def learning(
    timesteps: Timesteps, loss: Callable, constants: Mapping[str, PyTree] | None = None
) -> Objective:
    """The objective of a loss with a teacher, whose aux has the teacher's parameters and constants
    beside the state of the distribution of t."""
    timed = with_times(timesteps, loss)

    def init(key, params):
        return timed.init(key, params) | {TEACHER: params, **(constants or {})}

    def update(aux, state, report):
        return aux | timed.update(aux, state, report)

    return timed._replace(init=init, update=update, teacher=True)


def teacher_of(
    problem: Problem, aux: Mapping[str, PyTree], context: Context, cond: Cond, w: Any = 0.0
) -> Denoiser:
    """The teacher as a denoiser, without dropout and without a gradient, guided by the weight w: a
    number, 0 for none, or one an example [B]."""
    params = jax.lax.stop_gradient(aux[TEACHER])
    told = make_denoiser(context.apply_fn, params, problem.parameterization, cond)
    if isinstance(w, int | float) and w == 0:
        return told
    assert problem.conditioner.null is not None
    return classifier_free(told, told._replace(cond=problem.conditioner.null(cond)), w)


def check_guided(problem: Problem) -> None:
    """Raises ValueError where the teacher cannot be guided, as no condition was ever dropped."""
    if problem.conditioner.null is None:
        raise ValueError(
            "the teacher is guided away from no condition: it needs one whose dropout is above 0, "
            "as config.conditioning.label.dropout=0.1"
        )


def weight_of(problem: Problem) -> Callable:
    """level -> the weight of the squared error of x0: diffusion.weighting or, where it is none,
    max(snr, 1)."""
    return problem.weighting or truncated_snr()
