"""What an autoencoder's run draws: held-out examples, given back."""

import numpy as np

from diffusion_jax.data import pipeline
from diffusion_jax.devices.parallel import Started, map_examples, precision
from diffusion_jax.runs.build import Parts, load_source
from diffusion_jax.runs.config import Config


def make_reconstruct(config: Config, parts: Parts, decoded: bool) -> Started:
    """As `make_generate` of a run whose objective reconstructs: sample number i is held-out example
    number i, round and round, as the autoencoder gives it back."""
    reconstruct, codec, entry = parts.objective.reconstruct, parts.codec, parts.modality.entry
    assert reconstruct is not None
    source = load_source(config, config.data.eval_split)

    def of_batch(params, data):
        x0 = codec.encode(codec.params, None, data)
        found = reconstruct(parts.apply_fn, parts.cast(params), x0)
        return codec.decode(codec.params, found) if decoded else found

    mapped = map_examples(of_batch)

    def start(params, index, seed=None, w=None):
        examples = pipeline.examples(source, np.asarray(index) % len(source))
        with precision(config.model.values().get("dtype")):
            return mapped.start(params, examples[entry])

    return Started(start)
