"""Which field of a config names an entry of which registry."""

from diffusion_jax import samplers
from diffusion_jax.codecs import CODECS
from diffusion_jax.conditioning import CONDITIONERS
from diffusion_jax.core import grids, predictions, schedules, timesteps, weightings
from diffusion_jax.data.sources import SOURCES
from diffusion_jax.modalities import MODALITIES
from diffusion_jax.models.registry import MODELS
from diffusion_jax.objectives import OBJECTIVES
from diffusion_jax.runs.guides import GUIDES
from diffusion_jax.runs.registry import Registry
from diffusion_jax.samplers import names
from diffusion_jax.training.optimizers import OPTIMIZERS

REGISTRIES = {
    registry.path: registry
    for registry in (
        Registry("data.source", SOURCES, positional=1),  # the split
        Registry("data.modality", MODALITIES),
        Registry("codec", CODECS),
        Registry("conditioning", CONDITIONERS),
        Registry("model", MODELS),
        Registry("diffusion.schedule", schedules.SCHEDULES),
        Registry("diffusion.prediction", predictions.PREDICTIONS),
        Registry("diffusion.loss", OBJECTIVES),
        Registry("diffusion.weighting", weightings.WEIGHTINGS, optional=True),
        Registry("diffusion.timesteps", timesteps.TIMESTEPS),
        Registry("training.optimizer", OPTIMIZERS),
        Registry("sampling.sampler", samplers.SAMPLERS, resolve=names.resolve, near=names.near),
        Registry("sampling.grid", grids.GRIDS, positional=2),  # the schedule and the steps
        Registry("sampling.guide", GUIDES),
    )
}
