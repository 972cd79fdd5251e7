"""How well an autoencoder gives held-out images back, beside simpler ways of the same size.

Command:   python benchmarks/autoencoder.py --workdir runs/emoji_autoencoder [--images 1000]
           [--train 6000] [--least 25]

Prints PSNR, the mean over held-out images of 10 log10(255^2 / mean square error) of whole numbers
from 0 to 255, of the run's averaged parameters; of the principal components of `--train` training
images, as many as a latent has numbers; and of the largest square image with at most as many
numbers, by Pillow's bicubic filter down and up again. Then the mean and the deviation of every
channel of the latents and, of codes, the share that the held-out images use and its perplexity.
Exits with status 1 where the autoencoder is below `--least` dB or below one of the others, or uses
less than half of its codebook."""

import argparse
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from diffusion_jax.core import quantization  # noqa: E402
from diffusion_jax.core.latents import Latents  # noqa: E402
from diffusion_jax.data import pipeline  # noqa: E402
from diffusion_jax.devices.parallel import equal_batches  # noqa: E402
from diffusion_jax.objectives.autoencoding import point  # noqa: E402
from diffusion_jax.runs.build import load_source  # noqa: E402
from diffusion_jax.runs.open import TrainedRun, open_run  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402

BATCH = 50


def psnr(images: np.ndarray, found: np.ndarray) -> float:
    """The mean over images uint8 [N, H, W, C], in dB; of one that is exact, of half a level."""
    error = np.square(images.astype(float) - found).reshape(len(images), -1).mean(axis=1)
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 0.25))))


def spread(source, count: int) -> np.ndarray:
    """Images of a source, evenly spread over it: uint8 [count, H, W, C]."""
    index = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return pipeline.examples(source, index)["image"]


def to_uint8(images: np.ndarray) -> np.ndarray:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


def by_components(train: np.ndarray, images: np.ndarray, count: int) -> np.ndarray:
    """Images from their first `count` principal components of the training images."""
    flat = lambda a: a.reshape(len(a), -1).astype(np.float64)
    mean = flat(train).mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(flat(train) - mean, rowvar=False))
    axes = vectors[:, -count:]
    return to_uint8(((flat(images) - mean) @ axes) @ axes.T + mean).reshape(images.shape)


def by_bicubic(images: np.ndarray, count: int) -> np.ndarray:
    """Images of `count` numbers at most, as squares, and back."""
    height, width, channels = images.shape[1:]
    side = math.isqrt(count // channels)
    size = lambda image, to: Image.fromarray(image).resize(to, Image.Resampling.BICUBIC)
    back = lambda a: np.asarray(size(np.asarray(size(a, (side, side))), (width, height)))
    return np.stack([back(image.squeeze()) for image in images]).reshape(images.shape)


def by_run(run: TrainedRun, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(reconstructions uint8 [N, H, W, C], latents [N, h, w, c] before they are quantised)."""
    parts, latents = run.parts, run.parts.apply_fn.module.latents
    codec, method = parts.codec, parts.apply_fn.method

    @jax.jit
    def of(params, images):
        z = point(latents, method("encode")(params, codec.encode(codec.params, None, images)))
        return codec.decode(codec.params, method("decode")(params, z)), z

    found = []
    for index, kept in equal_batches(len(images), min(BATCH, len(images))):
        drawn = of(run.params, images[index])
        found.append([np.asarray(a)[:kept] for a in drawn])
    back, z = (np.concatenate(part) for part in zip(*found, strict=True))
    return back, z


def used(latents: Latents, params, z: np.ndarray) -> tuple[float, float]:
    """(the share of all codes that latents have, its perplexity)."""
    if latents.regularizer == "vq":
        index = quantization.nearest(jnp.asarray(z), params["codebook"])
    else:
        index = quantization.fsq_index(jnp.asarray(z), latents.levels)
    sizes = np.bincount(np.asarray(index).reshape(-1), minlength=latents.codes)
    return float(np.mean(sizes > 0)), float(
        quantization.perplexity(jnp.asarray(sizes, jnp.float32))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="How well an autoencoder gives images back.")
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/emoji_autoencoder")
    parser.add_argument("--images", type=int, default=1000, help="held-out ones")
    parser.add_argument("--train", type=int, default=6000, help="images of which the axes are")
    parser.add_argument("--least", type=float, default=25.0, help="dB")
    options = parser.parse_args()
    config = load(options.workdir / "config.json")
    run = open_run(config, options.workdir, "a benchmark takes no settings")
    images = spread(load_source(config, config.data.eval_split), options.images)
    train = spread(load_source(config, config.data.train_split), options.train)
    back, z = by_run(run, images)
    count = z[0].size
    side = math.isqrt(count // images.shape[-1])
    others = {
        f"{count} principal components": by_components(train, images, count),
        f"bicubic, {side} x {side}": by_bicubic(images, count),
    }
    mine, fine = psnr(images, back), True
    print(f"{len(images)} held-out images, step {run.step}, latents {z.shape[1:]}")
    print(f"{'autoencoder':28} {mine:6.2f} dB, at least {options.least:g}")
    fine &= mine >= options.least
    for name, found in others.items():
        value = psnr(images, found)
        print(f"{name:28} {value:6.2f} dB")
        fine &= mine > value
    mean, deviation = z.mean(axis=(0, 1, 2)), z.std(axis=(0, 1, 2))
    for channel, (m, s) in enumerate(zip(mean, deviation, strict=True)):
        print(f"channel {channel:<20} {m:+.3f} +- {s:.3f}")
    latents = run.parts.apply_fn.module.latents
    if latents.codes:
        share, perplexity = used(latents, run.params, z)
        print(f"of {latents.codes} codes {share:.1%} are used, perplexity {perplexity:.1f}")
        fine &= share >= 0.5
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
