"""The loss on held-out examples, each at a fixed t with fixed noise, so that two evaluations differ
by the parameters alone."""

from collections.abc import Callable

import jax
import numpy as np

from diffusion_jax.core import noise
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import ApplyFn, Timesteps
from diffusion_jax.data import pipeline
from diffusion_jax.devices.parallel import equal_batches, map_examples
from diffusion_jax.objectives import Context, Objective


def make_evaluate(
    objective: Objective,
    apply_fn: ApplyFn,
    distribution: Timesteps,
    source,
    examples: int,
    batch_size: int,
    seed: int,
    before: Callable = lambda batch: batch,
) -> Callable:
    """evaluate(params, aux) -> the mean loss of `examples` examples, going round the source as
    often as that takes; all conditions told, nothing augmented.

    distribution: of t, one without a state. before: of a batch, before the loss sees it.
    """
    t_key, noise_key = jax.random.split(noise.key(seed))

    def losses(params_and_aux, index, batch):
        params, aux = params_and_aux
        t, weights = distribution.sample((), t_key, index, examples)
        keys = example_keys(noise_key, index)
        context = Context(apply_fn, params, 0, keys, t, weights, training=False)
        return objective.loss(params, aux, context, batch)[0]

    mapped = map_examples(losses)

    def evaluate(params, aux) -> float:
        total = 0.0
        for index, kept in equal_batches(examples, batch_size):
            batch = before(pipeline.examples(source, index % len(source)))
            total += mapped((params, aux), index, batch)[:kept].astype(np.float64).sum()
        return total / examples

    return evaluate
