"""Guidance distilled: one call of a student for two of its teacher (Meng et al. 2023, "On
Distillation of Guided Diffusion Models")."""

import jax
import jax.numpy as jnp

from diffusion_jax.conditioning.guidance_weight import NAME, weights
from diffusion_jax.core.components import component
from diffusion_jax.core.process import q_sample
from diffusion_jax.likelihood.variational import mean_flat
from diffusion_jax.objectives.objective import Objective, Problem, denoiser, noised
from diffusion_jax.objectives.teachers import check_guided, learning, teacher_of, weight_of


@component
def distilled_guidance(problem: Problem) -> Objective:
    """The error of x0 against the teacher's, guided by a weight that the student is told (Meng et
    al. 2023, section 3.1, stage one).

    The weight is that of the condition guidance_weight, which the run has beside its teacher's. The
    error is weighted by max(snr, 1), or by diffusion.weighting."""
    if NAME not in problem.conditioner.kinds:
        raise ValueError(
            "distilled_guidance tells the student guidance's weight: add guidance_weight to "
            "config.conditioning"
        )
    check_guided(problem)
    weighting = weight_of(problem)

    def loss(params, aux, context, batch):
        x0, eps, level, cond = noised(problem, context, batch)
        z = q_sample(x0, eps, level)
        teacher = teacher_of(problem, aux, context, cond, weights(cond[NAME]))
        guided = jax.lax.stop_gradient(teacher(z, level).x0)
        student = denoiser(problem, params, context, cond)(z, level).x0
        error = mean_flat(jnp.square(student - guided))
        return weighting(level) * error, {"logsnr": level.logsnr, "x0_error": error}

    return learning(problem.timesteps, loss)
