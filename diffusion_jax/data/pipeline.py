"""Batches from a source: grain shuffles, shards by process, batches and prefetches."""

import grain
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.buckets import turns
from diffusion_jax.data.latents import MIRRORED

ENDLESS = 2**60  # examples


class Flip(grain.transforms.RandomMap):
    """Mirrors half of the images [H, W, C], of any type, that an entry of the examples holds; of
    latents, takes those of the mirrored image."""

    def __init__(self, entry: str):
        self.entry = entry

    def random_map(self, element, rng: np.random.Generator):
        image, flipped = element.get(self.entry), rng.random() < 0.5
        if MIRRORED in element:
            mirrored = element[MIRRORED] if flipped else image
            return {n: a for n, a in element.items() if n != MIRRORED} | {self.entry: mirrored}
        if np.ndim(image) != 3:
            raise UserError(f"config.data.flip mirrors images, which {self.entry!r} holds none of")
        return {**element, self.entry: image[:, ::-1]} if flipped else element


class WithMirrored:
    """A source of latents whose examples have those of the mirrored image, too."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return {**self.source[index], MIRRORED: self.source.mirrored(index)}


class Part:
    """The examples of a source with these indices."""

    def __init__(self, source, indices: np.ndarray):
        self.source, self.indices = source, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.source[int(self.indices[i])]


def training_batches(
    source,
    batch_size: int,
    seed: int,
    flip: str = "",
    process: int = 0,
    processes: int = 1,
    epochs: int | None = None,
):
    """An iterator of batches, what a source yields, stacked: {"image": uint8 [B, H, W, C],
    "label": int32 [B]}. They are newly shuffled every epoch; None is endless.

    flip: the entry whose images are mirrored, half of them; none where it is empty.

    There is one stream of examples, epoch after epoch, cut into batches of batch_size; a batch may
    end one epoch and begin the next. Process p takes the p-th of `processes` equal parts of every
    batch, so that together they read what one process alone would, in its order. Only the very last
    batch of a number of epochs is smaller; its parts then are not equal. `get_state()` is a small
    dict of numbers from which `set_state()` continues with the very next batch, also on another
    number of processes.

    A source with `buckets`, int [N], gives images of the size of their bucket: there is a stream of
    each bucket, a batch is of one, and `turns` says of which. Such a source has no end."""
    if batch_size % processes:
        raise UserError(
            f"training.batch_size={batch_size} is not divisible by {processes} processes"
        )
    share = batch_size // processes
    buckets = getattr(source, "buckets", None)
    if buckets is None:
        streams, turn = [stream_of(source, seed, epochs, flip)], lambda batch: (0, batch)
    elif epochs is not None:
        raise ValueError("examples in buckets have no epochs; a batch is of one bucket")
    else:
        sized, found = source.bucketed(), np.unique(buckets)
        parts = [Part(sized, np.flatnonzero(buckets == bucket)) for bucket in found]
        seeds = [(seed + bucket) % 2**32 for bucket in range(len(parts))]
        streams = [stream_of(*own, None, flip) for own in zip(parts, seeds, strict=True)]
        turn = turns([len(part) for part in parts], seed)

    def example(i):
        bucket, before = turn(i // share)
        return streams[bucket][before * batch_size + process * share + i % share]

    length = ENDLESS
    if epochs is not None:
        length = own_length(len(streams[0]), batch_size, process, processes)
    own = grain.MapDataset.range(length).map(example)
    return iter(
        own.batch(share).to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=4))
    )


def stream_of(source, seed: int, epochs: int | None, flip: str) -> grain.MapDataset:
    """The examples, newly shuffled every epoch. Flips are drawn here, before processes take their
    parts: a flip is the example's, not the process's."""
    source = WithMirrored(source) if flip and hasattr(source, "mirrored") else source
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs)
    return stream.random_map(Flip(flip)) if flip else stream


def own_length(total: int, batch_size: int, process: int, processes: int) -> int:
    """How many of the first `total` examples of the stream are a process's."""
    share = batch_size // processes
    rest = total % batch_size - process * share
    return total // batch_size * share + min(max(rest, 0), share)


def examples(source, indices) -> dict[str, np.ndarray]:
    """The batch of the given examples."""
    chosen = [source[int(i)] for i in indices]
    return {name: np.stack([example[name] for example in chosen]) for name in chosen[0]}
