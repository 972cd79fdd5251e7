"""Reflow: a flow learned from the pairs that another flow makes, whose paths are straighter."""

import jax
import jax.numpy as jnp

from diffusion_jax import samplers
from diffusion_jax.core import grids
from diffusion_jax.core.components import component
from diffusion_jax.core.settings import at_least
from diffusion_jax.objectives import losses
from diffusion_jax.objectives.objective import Objective, Problem, network, noised
from diffusion_jax.objectives.teachers import check_guided, learning, teacher_of


@component
def reflow(problem: Problem, steps: int = 10, guidance: float = 0.0) -> Objective:
    """The error of `denoising` on pairs of noise and what the teacher's probability flow makes of
    it, in place of pairs of noise and data, by which paths become straight (Liu et al. 2022,
    section 2).

    On the schedule's path between the two, which is straight for rectified_flow; of a batch only
    the conditions are used. The pairs are drawn anew in every step, by Heun's method.

    Args:
      steps: levels of the teacher's chain, at least 1; two calls of the teacher each, but the last.
      guidance: weight w of the teacher's guidance, at least 0.
    """
    at_least(1, steps=steps)
    at_least(0, guidance=guidance)
    if guidance:
        check_guided(problem)
    if problem.variance == "learned_range":
        raise ValueError("reflow trains no learned variance")
    grid = grids.uniform(problem.schedule, steps)
    squared = losses.denoising(problem.parameterization, "l2", problem.weighting)

    def drawn(aux, context, eps, cond):
        """What the teacher makes of the noise."""
        teacher = teacher_of(problem, aux, context, cond, guidance)
        x = jnp.sqrt(grid.alpha[0] ** 2 + grid.sigma[0] ** 2) * eps
        return samplers.sample(samplers.heun_flow(), teacher, None, x, grid)

    def on_batch(params, aux, context, batch):
        _, eps, level, cond = noised(problem, context, batch)
        x0 = jax.lax.stop_gradient(drawn(aux, context, eps, cond))
        return squared(network(params, context), x0, eps, level, cond), {"logsnr": level.logsnr}

    return learning(problem.timesteps, on_batch)
