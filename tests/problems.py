"""Problems and objectives for tests of training: any network, any loss, no registry."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.codecs import pixels
from diffusion_jax.conditioning import label
from diffusion_jax.core import predictions, schedules, timesteps
from diffusion_jax.data.spec import Declared
from diffusion_jax.objectives import Objective, Problem

NUM_STEPS = 100


def problem(shape=(4, 4, 1), num_classes=0, conditioner=None, distribution=None, **more) -> Problem:
    """A problem of uint8 images in `schedules.cosine(100)`; more: its other fields."""
    declared = Declared(shape, num_classes)
    schedule = more.pop("schedule", schedules.cosine(NUM_STEPS))
    return Problem(
        schedule=schedule,
        parameterization=more.pop("parameterization", predictions.eps()),
        timesteps=distribution or timesteps.uniform(schedule),
        codec=more.pop("codec", pixels(declared)),
        conditioner=conditioner or label(declared),
        **more,
    )


def image_batch(count: int, shape=(4, 4, 1)) -> dict[str, np.ndarray]:
    """Random images, and labels in turn."""
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)
    return {"image": images, "label": np.arange(count, dtype=np.int32) % 10}


def objective_of(loss, **more) -> Objective:
    """The objective of a loss (params, aux, context, batch) -> (losses, report), without a state;
    every t is 0."""

    def sample(aux, key, index, total):
        return jnp.zeros(index.shape, int), jnp.ones(index.shape)

    parts = {
        "init": lambda key, params: (),
        "sample": sample,
        "loss": loss,
        "update": lambda aux, state, report: aux,
    }
    return Objective(**(parts | more))
