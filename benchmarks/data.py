"""How fast the data pipeline is, beside the images that training the CIFAR-10 U-Net takes in the
same time.

Command:   TFDS_DATA_DIR=... python benchmarks/data.py [--windows 7] [--seconds 2]
Hardware:  any; four minutes on two cores, a third of it compilation

Reads batches of 128 CIFAR-10 images, shuffled and half of them mirrored, from TensorFlow Datasets,
a folder of PNG files, that folder with its decoded images kept, and an array; without a prepared
CIFAR-10 from the last three, of generated images. Between the windows of a fixed time in which the
sources are measured, one after the other, steps of training the model of experiments/cosine.py are
timed, of a small batch on a CPU: an image costs it the less the larger its batch. Prints the median
images a second and their ratio. Exits with status 1 where a source is less than 10 times as fast as
training."""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from diffusion_jax.core.errors import UserError  # noqa: E402
from diffusion_jax.data import pipeline, sources  # noqa: E402
from diffusion_jax.data.spec import Declared  # noqa: E402
from diffusion_jax.devices.parallel import layout, make_take_steps, place  # noqa: E402
from diffusion_jax.modalities import pictures  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.training.step import make_train_step  # noqa: E402
from experiments.cosine import get_config  # noqa: E402

SHAPE, BATCH, LEAST = (32, 32, 3), 128, 10
WARM_UP = 20  # batches, more than are prefetched


def make_sources(folder: pathlib.Path, count: int) -> dict:
    """name -> a source of `count` images, of CIFAR-10 where it is prepared; tfds, all of which is
    read, only there."""
    made = {}
    try:
        if not os.environ.get("TFDS_DATA_DIR"):
            raise UserError("TFDS_DATA_DIR is not set")
        made["tfds"] = sources.tfds("train", "cifar10:3.0.2")
        images = pipeline.examples(made["tfds"], range(count))["image"]
    except UserError as error:
        print(f"note: no CIFAR-10, but generated images ({error})")
        images = (
            np.random.default_rng(0)
            .integers(0, 256, (count, 4, 4, 3))
            .astype(np.uint8)
            .repeat(8, axis=1)
            .repeat(8, axis=2)
        )
    for i, image in enumerate(images):
        pictures.save(folder / f"{i:05d}.png", image)
    made["folder"] = sources.folder("all", Declared(SHAPE), str(folder))
    made["folder, cached"] = sources.folder("all", Declared(SHAPE), str(folder), cache=True)
    made["arrays"] = sources.Arrays(images, np.zeros(count, np.int32))
    return made


def training(batch_size: int):
    """() -> images a second of one step of training the model of experiments/cosine.py, compiled
    already."""
    config = get_config()
    parts, lay = build(config), layout()
    step = make_train_step(
        parts.objective, parts.apply_fn, parts.optimizer, parts.ema, **lay.options()
    )
    take_step, state = (
        make_take_steps(lay, step, None),
        place(parts.init_state(jax.random.key(0))),
    )
    batch = {
        "image": np.zeros((1, batch_size, *SHAPE), np.uint8),
        "label": np.zeros((1, batch_size), np.int32),
    }

    def measure() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = take_step(state, jax.random.key(1), batch)
        jax.block_until_ready((state, metrics))
        return batch_size / (time.perf_counter() - start)

    start = time.perf_counter()
    measure()
    print(f"the training step compiled in {time.perf_counter() - start:.0f} s", flush=True)
    return measure


def window(source, seed: int, seconds: float) -> float:
    """Images a second of the pipeline over a source, over at least so many seconds after a
    warm-up."""
    batches, count = pipeline.training_batches(source, BATCH, seed, flip="image"), 0
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["image"])
    rate = count / (time.perf_counter() - start)
    batches.close()
    return rate


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The data pipeline's images a second beside those that training takes."
    )
    parser.add_argument(
        "--windows", type=int, default=7, help="of each source, and steps of training"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="a window")
    parser.add_argument("--images", type=int, default=10_000, help="of the folder and the array")
    parser.add_argument(
        "--train-batch", type=int, default=8 * jax.device_count(), help="images a step of training"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # the decoded images go with it
        images = pathlib.Path(folder) / "images"
        images.mkdir()
        try:
            read = make_sources(images, options.images)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        step, steps = training(options.train_batch), []
        rates: dict[str, list[float]] = {name: [] for name in read}
        for i in range(options.windows):
            steps.append(step())
            for name, source in read.items():
                rates[name].append(window(source, i, options.seconds))
    needed = statistics.median(steps)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    span = f"{min(steps):.2f} ... {max(steps):.2f}"
    print(
        f"training       {needed:8.2f} images/s, {span}, batch {options.train_batch}, {device}, "
        f"{os.cpu_count()} cores"
    )
    slow = []
    for name, measured in rates.items():
        rate = statistics.median(measured)
        print(
            f"{name:14} {rate:8.0f} images/s, {min(measured):.0f} ... {max(measured):.0f}, "
            f"{rate / needed:.0f} times training"
        )
        slow += [name] if rate < LEAST * needed else []
    if slow:
        print(f"less than {LEAST} times as fast as training: {', '.join(slow)}")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
