"""Batches from a source: grain shuffles, shards by process, batches and prefetches."""

import grain
import numpy as np


class Flip(grain.transforms.RandomMap):
    """Mirrors half of the images."""

    def random_map(self, element, rng: np.random.Generator):
        return {**element, "image": element["image"][:, ::-1]} if rng.random() < 0.5 else element


def training_batches(source, batch_size: int, seed: int, flip: bool = False, process: int = 0, processes: int = 1):
    """An endless iterator of batches {"image": uint8 [B, H, W, C], "label": int32 [B]}, newly shuffled every epoch.

    B = batch_size / processes. Every process reads its own examples, none lost or doubled. `get_state()` is a small dict
    of numbers from which `set_state()` continues with the very next batch.
    """
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()[process::processes]
    if flip:
        examples = examples.random_map(Flip())
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)
    return iter(examples.batch(batch_size // processes).to_iter_dataset(options))


def examples(source, indices) -> dict[str, np.ndarray]:
    """The batch of the given examples."""
    chosen = [source[int(i)] for i in indices]
    return {name: np.stack([example[name] for example in chosen]) for name in chosen[0]}
