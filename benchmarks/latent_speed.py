"""How many images a second are trained on in latents, beside pixels, at 128 x 128.

Command:   python benchmarks/latent_speed.py [--batch 4] [--seconds 4] [--rounds 3]
Hardware:  any

A training step of one U-Net (Adam, EMA, a run's metrics) on the emoji's shapes at 128 x 128 x 3,
and on their latents of f = 4, 32 x 32 x 4, whose moments were kept before (`main.py encode`).
The networks have the same channels and levels, attention on the lowest level, and so as many
parameters but for the first and the last convolution. They take turns of some seconds each; printed
are medians and their ratio. Exits with status 1 where latents are less than 4 times as fast."""

import argparse
import pathlib
import statistics
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.unet import times, training_step  # noqa: E402
from diffusion_jax.devices import cpu  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.config import Config, Data, Diffusion, Training, use  # noqa: E402
from diffusion_jax.runs.latents import assumed  # noqa: E402

PIXELS, FACTOR, LATENT, CLASSES = 128, 4, 4, 128
LEVELS = (1, 2, 3)


def config_of(latents: bool, batch: int) -> Config:
    side = PIXELS // FACTOR if latents else PIXELS
    lowest = side // 2 ** (len(LEVELS) - 1)
    found = Config(
        data=Data(source="emoji", shape=(PIXELS, PIXELS, 3), num_classes=CLASSES),
        model=use("unet", channels=32, channel_mult=LEVELS, blocks=1, heads=2,
                  attention_resolutions=(lowest,)),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        training=Training(batch_size=batch),
    )  # fmt: skip
    if latents:
        found.codec = use("autoencoder", weights="none", factor=FACTOR, latent=LATENT)
    return assumed(found)


def work(latents: bool, batch: int) -> tuple[Callable[[], None], int]:
    """(a function that takes a training step, the number of parameters)."""
    config, rng = config_of(latents, batch), np.random.default_rng(0)
    parts = build(config)
    state = [jax.jit(parts.init_state, compiler_options=cpu.once())(jax.random.key(0))]
    count = sum(a.size for a in jax.tree.leaves(state[0].params))
    if parts.codec.kept:
        image = rng.standard_normal((batch, *parts.codec.kept), np.float32)
    else:
        image = rng.integers(0, 256, (batch, PIXELS, PIXELS, 3), np.uint8)
    labels = jnp.asarray(rng.integers(0, CLASSES, batch))
    data, key = {"image": jnp.asarray(image), "label": labels}, jax.random.key(0)
    step = jax.jit(training_step(config, parts), donate_argnums=0)

    def train() -> None:
        state[0], metrics = step(state[0], key, data)
        jax.block_until_ready((state[0], metrics))

    return train, count


def main() -> int:
    parser = argparse.ArgumentParser(description="Training in latents beside pixels.")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cpu.tune()
    works = {name: work(name == "latents", options.batch) for name in ("pixels", "latents")}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, (train, _count) in works.items():
            taken[name] += times(train, options.seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, median in medians.items():
        print(f"{name:8} {works[name][1]:,} parameters, {options.batch / median:.2f} images/s, "
              f"median of {len(taken[name])} steps")  # fmt: skip
    ratio = medians["pixels"] / medians["latents"]
    print(f"latents: {ratio:.1f} times as many images a second")
    return int(ratio < 4.0)


if __name__ == "__main__":
    sys.exit(main())
