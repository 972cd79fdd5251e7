"""The loss on held-out examples, each at a fixed t with fixed noise, so that two evaluations differ
by the parameters alone."""

from collections.abc import Callable

import jax
import numpy as np

from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import Timesteps
from diffusion_jax.data import pipeline
from diffusion_jax.devices.parallel import equal_batches, map_examples


def make_evaluate(
    loss_fn: Callable, distribution: Timesteps, source, examples: int, batch_size: int, seed: int
) -> Callable:
    """evaluate(params) -> the mean loss of `examples` examples, going round the source as often as
    that takes.

    loss_fn: (params, keys [B], batch, t [B]) -> losses [B]. distribution: of t, one without a
    state."""
    t_key, noise_key = jax.random.split(jax.random.key(seed))

    def losses(params, index, batch):
        t, _ = distribution.sample((), t_key, index, examples)
        return loss_fn(params, example_keys(noise_key, index), batch, t)

    mapped = map_examples(losses)

    def evaluate(params) -> float:
        total = 0.0
        for index, kept in equal_batches(examples, batch_size):
            batch = pipeline.examples(source, index % len(source))
            total += mapped(params, index, batch)[:kept].astype(np.float64).sum()
        return total / examples

    return evaluate
