"""EDM's augmentation regularization: images transformed at random, and the network told how, so
that none of it leaks.

Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix
F.2 and table 6."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditioning.conditioner import Conditioner
from diffusion_jax.core.components import component
from diffusion_jax.core.noise import fold_in
from diffusion_jax.core.settings import TRAINING
from diffusion_jax.core.types import Array, Kind, Kinds

CONDITIONING = 9  # numbers that tell the network what was done to an image
SCALE = ANISOTROPY = 2.0**0.2  # A_scale and A_aniso
TRANSLATION = 1 / 8  # A_trans, of the image's size
PART = 2  # of an example's randomness


@component
def augmentation(probability: Annotated[float, TRAINING] = 0.12) -> Conditioner:
    """Images transformed at random, and the network told how (Karras et al. 2022, appendix F.2).

    In sampling and evaluation the network is told nothing, which is that images are as they are.

    Args:
      probability: of each transformation but the mirroring, in (0, 1]; the paper's A_prob, 0.12
        for CIFAR-10.
    """
    if not 0.0 < probability <= 1.0:
        raise ValueError(f"probability must be above 0 and at most 1, not {probability}")

    def train(keys, batch):
        if keys is None:
            return batch, {}
        images = jnp.asarray(batch["image"]).astype(jnp.float32)
        images, told = augment(fold_in(keys, PART), images, probability)
        return {**batch, "image": images}, {"augmentation": told}

    return Conditioner(
        kinds=Kinds({"augmentation": Kind("vector", CONDITIONING)}),
        reads=(),
        train=train,
        null=None,
        example=lambda n: {"augmentation": jnp.zeros((n, CONDITIONING))},
    )


def augment(keys: jax.Array, x0: Array, probability: float) -> tuple[jax.Array, jax.Array]:
    """Images [B, H, W, C] transformed at random -> (images [B, H, W, C], conditioning [B, 9]),
    example i by keys[i] alone.

    `probability`, in [0, 1], is that of each transformation but the first: the paper's A_prob, 0.12
    for CIFAR-10 and 0.15 for others. Half of all images are mirrored whatever it is. The
    conditioning is 0 for an image that nothing was done to, and this image is returned bit for bit;
    so are one's mirror images. Others may leave the images' range a little."""
    parameters = draw(keys, probability)
    return jax.vmap(transform)(x0, parameters), conditioning(parameters)


def draw(keys: jax.Array, probability: float) -> jax.Array:
    """The parameters a0 ... a7 of table 6, [B, 8], 0 where a transformation is left out.

    a0, a1 in {0, 1}: mirrored left to right, and top to bottom. a2 ~ N(0, 1): scaled by A_scale^a2.
    a3 in [-pi, pi): turned counter-clockwise. a4 in [-pi, pi), a5 ~ N(0, 1): stretched by
    A_aniso^a5 in the direction a4, clockwise from the right, and shrunk as much across it. a6, a7 ~
    N(0, 1): moved by A_trans of the width to the right, of the height down."""

    def one(key):
        bits, angles, normals, enabled = jax.random.split(key, 4)
        a0, a1 = jax.random.bernoulli(bits, shape=(2,)).astype(jnp.float32)
        a3, a4 = jax.random.uniform(angles, (2,), minval=-jnp.pi, maxval=jnp.pi)
        a2, a5, a6, a7 = jax.random.normal(normals, (4,))
        y, scale, turn, stretch, move = jax.random.bernoulli(enabled, probability, (5,))
        on = jnp.stack([jnp.array(True), y, scale, turn, stretch, stretch, move, move])
        return jnp.where(on, jnp.stack([a0, a1, a2, a3, a4, a5, a6, a7]), 0.0)

    return jax.vmap(one)(keys)


def conditioning(parameters: Array) -> jax.Array:
    """a0 ... a7, [B, 8] -> a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7, [B, 9]:
    table 6, last column.

    As in the paper, (a4, a5) and (a4 + pi, -a5) share their two numbers, though they are not the
    same stretch."""
    a0, a1, a2, a3, a4, a5, a6, a7 = jnp.moveaxis(parameters, -1, 0)
    columns = (a0, a1, a2, jnp.cos(a3) - 1, jnp.sin(a3), a5 * jnp.cos(a4), a5 * jnp.sin(a4), a6, a7)
    return jnp.stack(columns, axis=-1)


def transform(image: Array, parameters: Array) -> jax.Array:
    """An image [H, W, C] transformed by its parameters a0 ... a7, in this order, about its
    centre."""
    a0, a1, a2, a3, a4, a5, a6, a7 = parameters
    height, width, _ = image.shape
    image = jnp.where(a0 > 0, image[:, ::-1], image)
    image = jnp.where(a1 > 0, image[::-1], image)
    stretch = ANISOTROPY**a5
    axes = jnp.diag(jnp.stack([1 / stretch, stretch]))
    product = lambda *matrices: jnp.linalg.multi_dot(matrices, precision="highest")
    back = SCALE**-a2 * product(
        rotation(a3), rotation(a4), axes, rotation(-a4)
    )  # of (x, y), y down
    moved = resample(image, back, TRANSLATION * jnp.stack([a6 * width, a7 * height]))
    return jnp.where(jnp.any(parameters[2:] != 0), moved, image)


def rotation(angle: Array) -> jax.Array:
    """Of (x, y) by an angle; clockwise to the eye, since y goes down."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[c, -s], [s, c]])


def resample(image: Array, back: Array, shift: Array) -> jax.Array:
    """The image [H, W, C] whose value at p, from the centre, is the given one's at back (p -
    shift); p = (x, y) in pixels.

    The paper resamples as Karras et al. 2020 (ADA) do, at twice the resolution, between two filters
    by wavelets (sym6), of an image padded by reflection. Here both filters are Lanczos's windowed
    sinc (a = 3), the value between pixels of twice the resolution is bilinear, and the image goes
    on as its own mirror image for ever: d c b a | a b c d | d c b a."""
    height, width, _ = image.shape
    fine = filtered(finer(height), image, finer(width))
    half_pixels = lambda size: (jnp.arange(2 * size + 2 * REACH - 1) - REACH - (size - 1)) / 2
    y, x = jnp.meshgrid(
        half_pixels(height) - shift[1], half_pixels(width) - shift[0], indexing="ij"
    )
    column = back[0, 0] * x + back[0, 1] * y
    row = back[1, 0] * x + back[1, 1] * y
    places = [2 * row + height, 2 * column + width]
    look_up = lambda channel: jax.scipy.ndimage.map_coordinates(
        channel, places, order=1, mode="mirror"
    )
    found = jax.vmap(look_up, in_axes=-1, out_axes=-1)(fine)
    return filtered(coarser(height), found, coarser(width))


def filtered(rows, image, columns):
    return jnp.einsum("ph,hwc,qw->pqc", rows, image, columns, precision="highest")


REACH = 5  # half-pixels to either side that a filter sees


def lanczos(distance: np.ndarray) -> np.ndarray:
    """Lanczos's interpolation (a = 3), over half-pixels; its weights midway between two pixels sum
    to 1 exactly."""
    weights = lambda k: np.sinc(k / 2) * np.sinc(k / 6) * (np.abs(k) <= REACH)
    midway = weights(np.arange(-REACH, REACH + 1, 2)).sum()
    return np.where(distance % 2, weights(distance) / midway, distance == 0)


def finer(size: int) -> np.ndarray:
    """[2 size + 1, size]: pixels -> every half-pixel, from one edge of the image to the other."""
    mirrored = np.pad(np.eye(size, dtype=np.float32), ((3, 3), (0, 0)), mode="symmetric")
    half, pixel = np.arange(2 * size + 1)[:, None], np.arange(-3, size + 3)
    return (lanczos(half - (2 * pixel + 1)) @ mirrored).astype(np.float32)


def coarser(size: int) -> np.ndarray:
    """[size, 2 size - 1 + 2 REACH]: every half-pixel, from REACH before the first pixel to REACH
    after the last -> pixels."""
    half, pixel = np.arange(2 * size - 1 + 2 * REACH), np.arange(size)[:, None]
    return (lanczos(half - REACH - 2 * pixel) / 2).astype(np.float32)
