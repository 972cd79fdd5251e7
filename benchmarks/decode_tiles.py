"""Decoding in tiles against decoding whole: memory, by XLA, and how far the images are apart.

    python benchmarks/decode_tiles.py [--run WORKDIR] [--pixels 1024] [--tile 64] [--memory]

Without a run the decoder is of random weights, as Stable Diffusion's but with an eighth of its
channels, f = 8; --memory compiles Stable Diffusion's own size instead and decodes nothing. Latents
are smooth random ones or, of a run, those of a mosaic of its held-out images. A seam is what the
difference of the two images changes by across a line where a tile begins or ends, beyond what it
changes by on the lines beside, in 1/255 of white. With
--noattention the decoder has none, or that of a run adds nothing.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.codecs.tiles import cut, decode_in_tiles
from diffusion_jax.models.autoencoder import Autoencoder
from diffusion_jax.runs.autoencoders import open_autoencoder
from diffusion_jax.runs.build import raw_source
from diffusion_jax.runs.settings import load


def random_decoder(channels: int, attention: bool):
    """(decode, params, factor, latents' channels) of random weights."""
    module = Autoencoder(3, channels=channels, attention=attention)
    init = lambda key: module.init(key, jnp.zeros((1, 64, 64, 3)))["params"]
    decode = lambda params, z: module.apply({"params": params}, z, method=module.decode)
    return decode, init, 8, 4


def smooth(height: int, channels: int) -> np.ndarray:
    """Latents [1, H, H, c] of deviation 1 without waves shorter than 8 latents."""
    noise = np.random.RandomState(0).normal(size=(height, height, channels))
    waves = np.fft.fftfreq(height)
    low = np.hypot(waves[:, None], waves) < 1 / 8
    z = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) * low[..., None], axes=(0, 1)).real
    return (z / z.std()).astype(np.float32)[None]


def mosaic(run: str, pixels: int) -> np.ndarray:
    """Held-out images of a run side by side, [1, pixels, pixels, C] in [-1, 1]."""
    config = load(f"{run}/config.json")
    source, (height, width, _) = raw_source(config, config.data.eval_split), config.data.shape
    rows, columns = pixels // height, pixels // width
    at = lambda i, j: source[(i * columns + j) % len(source)]["image"]
    lines = [np.concatenate([at(i, j) for j in range(columns)], axis=1) for i in range(rows)]
    return np.concatenate(lines)[None] / np.float32(127.5) - 1


def bytes_of(compiled) -> int:
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


def seams(difference: np.ndarray, axis: int, length: int, tile: int, factor: int) -> float:
    """The largest, over the lines where a tile begins or ends, of what the difference changes by
    across the line, mean of the absolute values along it, beyond the same of the lines beside."""
    first, size = cut(length, tile)
    lines = {int(n) * factor for n in (*first, *(first + size)) if 0 < n < length}
    jumps = np.abs(np.diff(difference, axis=axis))
    change = jumps.mean(axis=tuple(a for a in range(4) if a != axis))  # [pixels - 1]
    beside = lambda n: max(change[n - 1 + i] for i in (-2, -1, 1, 2))
    return max((change[n - 1] - beside(n) for n in lines), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="")
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--noattention", action="store_true")
    given = parser.parse_args()
    if given.run:
        coder = open_autoencoder(given.run, "")
        decode, params, factor, latent = coder.decode, coder.params, coder.factor, coder.latent
        z = coder.encode(params, mosaic(given.run, given.pixels))[..., :latent]
        if given.noattention:
            out = params["decoder"]["middle_attention"]["out"]
            none = {"out": jax.tree.map(jnp.zeros_like, out)}
            decoder = params["decoder"]
            decoder |= {"middle_attention": decoder["middle_attention"] | none}
            params = params | {"decoder": decoder}
    else:
        channels = 128 if given.memory else 16
        decode, init, factor, latent = random_decoder(channels, not given.noattention)
        params = jax.eval_shape(init, jax.random.key(0))
        if not given.memory:
            params = jax.jit(init)(jax.random.key(0))
        z = smooth(given.pixels // factor, latent)

    def in_tiles(params, z):
        return decode_in_tiles(lambda part: decode(params, part), z, factor, 3, given.tile)

    images, sizes = [], []
    for function in (decode, in_tiles):
        compiled = jax.jit(function).lower(params, z).compile()
        sizes.append(bytes_of(compiled))
        if not given.memory:
            start = time.perf_counter()
            images.append(np.asarray(compiled(params, z)))
            print(f"{time.perf_counter() - start:.1f} s")
    print(f"memory: whole {sizes[0] / 1e6:.0f} MB, tiles {sizes[1] / 1e6:.0f} MB, "
          f"{sizes[1] / sizes[0]:.3f}")  # fmt: skip
    if images:
        # of images in [-1, 1], as those of random weights are made
        scale = 127.5 / max(1.0, np.abs(images[0]).max())
        difference, whole = (images[1] - images[0]) * scale, images[0] * scale
        seam = max(seams(difference, axis, z.shape[axis], given.tile, factor) for axis in (1, 2))
        own = max(np.abs(np.diff(whole, axis=axis)).mean() for axis in (1, 2))
        print(f"apart: at most {np.abs(difference).max():.3f} / 255, root mean square "
              f"{np.sqrt(np.mean(difference**2)):.3f} / 255; seam {seam:.3f} / 255, "
              f"beside {own:.3f} / 255 that the whole image changes by a pixel")  # fmt: skip


if __name__ == "__main__":
    main()
