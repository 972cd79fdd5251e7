"""Samplers, and `sample`, the library's only loop over a reverse chain.

A sampler moves x from a level t to the cleaner level s. The last hop, to sigma = 0, is the
denoiser's x0: exact for DDPM, whose posterior there has mean x0 and variance 0, and for every
method here whose slope is eps or x0.

`keys` is one PRNG key per example, so that sample number i is the same in any batch.
"""

from diffusion_jax.core.noise import example_keys, initial_noise, normal
from diffusion_jax.samplers import (
    adams,
    ancestral_steps,
    edm,
    extended,
    first_order,
    flow_maps,
    langevin,
    multistep,
    restarts,
    singlestep,
)
from diffusion_jax.samplers import consistency as consistency_models
from diffusion_jax.samplers.adams import deis, lms, pndm
from diffusion_jax.samplers.ancestral_steps import (
    dpm2,
    dpm2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    euler_ancestral,
)
from diffusion_jax.samplers.cached import cached
from diffusion_jax.samplers.chain import (
    Path,
    advance,
    begin,
    draws_noise,
    final,
    invert,
    look,
    num_steps_for,
    progressive,
    sample,
)
from diffusion_jax.samplers.chosen import best_levels, local_errors
from diffusion_jax.samplers.consistency import consistency, tcd
from diffusion_jax.samplers.edm import MAX_GAMMA, edm_churn, euler_churn, heun, heun_flow
from diffusion_jax.samplers.extended import er_sde
from diffusion_jax.samplers.first_order import ancestral, ddim, euler, euler_maruyama
from diffusion_jax.samplers.flow_maps import flow_map
from diffusion_jax.samplers.half_size import sample_from_half
from diffusion_jax.samplers.langevin import annealed_langevin, predictor_corrector
from diffusion_jax.samplers.multistep import (
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    unipc,
)
from diffusion_jax.samplers.parallel import Picard, picard
from diffusion_jax.samplers.restarts import restart
from diffusion_jax.samplers.reused import reused
from diffusion_jax.samplers.singlestep import adaptive_ode, dpm_solver_2, dpm_solver_3

SAMPLERS = {
    **first_order.SAMPLERS,
    **edm.SAMPLERS,
    **multistep.SAMPLERS,
    **singlestep.SAMPLERS,
    **ancestral_steps.SAMPLERS,
    **adams.SAMPLERS,
    **langevin.SAMPLERS,
    **extended.SAMPLERS,
    **restarts.SAMPLERS,
    **consistency_models.SAMPLERS,
    **flow_maps.SAMPLERS,
}

__all__ = [
    "MAX_GAMMA",
    "SAMPLERS",
    "Path",
    "Picard",
    "adaptive_ode",
    "advance",
    "ancestral",
    "annealed_langevin",
    "begin",
    "best_levels",
    "cached",
    "consistency",
    "ddim",
    "deis",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "draws_noise",
    "edm_churn",
    "er_sde",
    "euler",
    "euler_ancestral",
    "euler_churn",
    "euler_maruyama",
    "example_keys",
    "final",
    "flow_map",
    "heun",
    "heun_flow",
    "initial_noise",
    "invert",
    "lms",
    "local_errors",
    "look",
    "normal",
    "num_steps_for",
    "picard",
    "pndm",
    "predictor_corrector",
    "progressive",
    "restart",
    "reused",
    "sample",
    "sample_from_half",
    "tcd",
    "unipc",
]
