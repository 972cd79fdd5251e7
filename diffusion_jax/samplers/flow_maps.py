"""The sampler of flow maps: networks that know where a step ends, and so take it in one call."""

from diffusion_jax.core.components import component
from diffusion_jax.core.process import q_sample
from diffusion_jax.core.types import CLEAN, Denoiser, Level, Sampler
from diffusion_jax.denoisers import going_to


@component
def flow_map() -> Sampler:
    """Steps of a flow map, whose network is told the level that each goes to (Frans et al. 2024;
    Geng et al. 2025); exact in any number of steps for a perfect network, and DDIM, of order 1,
    for one that is told no second time.

    Limits of x0 act in the last hop, to clean data, alone: between noisy levels x0 is no image."""

    def step(keys, denoiser: Denoiser, x, state, t: Level, s: Level):
        prediction = going_to(denoiser, s, limits=False)(x, t)
        return q_sample(prediction.x0, prediction.eps, s), state

    return Sampler(lambda x, level: (), step, last=lambda denoiser: going_to(denoiser, CLEAN))


SAMPLERS = {"flow_map": flow_map}
