"""The objectives of DDPM and Improved DDPM: a loss of `losses` on noised data."""

from typing import Literal

from diffusion_jax.core.components import component
from diffusion_jax.core.types import Loss
from diffusion_jax.objectives import losses
from diffusion_jax.objectives.objective import Objective, Problem, network, noised, with_times


def of_loss(problem: Problem, loss: Loss) -> Objective:
    """The objective of a loss (network, x0, eps, level, cond) -> losses [B]."""

    def on_batch(params, aux, context, batch):
        x0, eps, level, cond = noised(problem, context, batch)
        found = loss(network(params, context), x0, eps, level, cond)
        return found, {"logsnr": level.logsnr}

    return with_times(problem.timesteps, on_batch)


@component
def denoising(problem: Problem, norm: Literal["l2", "l1"] = "l2") -> Objective:
    """The error of the network's output against its target: L_simple with eps (Ho et al. 2020, eq.
    14).

    Args:
      norm: l2, the mean square, or l1, the mean absolute error.
    """
    return of_loss(problem, losses.denoising(problem.parameterization, norm, problem.weighting))


@component
def vlb(problem: Problem) -> Objective:
    """L_vlb: at t, the term of the bound of the step from t to its neighbour, times T, in bits/dim.

    Nichol & Dhariwal 2021, eq. 4. Needs a table schedule.
    """
    if problem.weighting is not None:
        raise ValueError("diffusion.weighting is of the denoising and hybrid losses, not of vlb")
    _check_bins(problem)
    arguments = (problem.parameterization, problem.schedule, problem.variance)
    return of_loss(problem, losses.vlb(*arguments, scaled=True))


@component
def hybrid(
    problem: Problem, coefficient: float = 0.001, norm: Literal["l2", "l1"] = "l2"
) -> Objective:
    """L_hybrid = L_simple + coefficient L_vlb, the mean's gradient stopped in L_vlb.

    Nichol & Dhariwal 2021, eq. 16. Needs a table schedule and a learned variance.

    Args:
      coefficient: of the variational bound, at least 0.
      norm: of L_simple: l2, the mean square, or l1, the mean absolute error.
    """
    if problem.variance != "learned_range":
        raise ValueError("hybrid trains a learned variance: set model.learned_variance=true")
    if coefficient < 0:
        raise ValueError(f"coefficient must be at least 0, not {coefficient}")
    _check_bins(problem)
    parameterization, schedule = problem.parameterization, problem.schedule
    loss = losses.hybrid(parameterization, schedule, coefficient, norm, problem.weighting)
    return of_loss(problem, loss)


def _check_bins(problem: Problem) -> None:
    if problem.codec.bins != 256:
        raise ValueError("the variational bound is of 8-bit data, which these are not")
