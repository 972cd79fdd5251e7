"""An example's own image at a lower resolution, for super-resolution and cascades of runs.

Saharia et al. 2021, "Image Super-Resolution via Iterative Refinement" (SR3); Ho et al. 2022,
"Cascaded Diffusion Models for High Fidelity Image Generation"; Saharia et al. 2022, "Photorealistic
Text-to-Image Diffusion Models with Deep Language Understanding" (Imagen)."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from diffusion_jax.conditioning.conditioner import Conditioner
from diffusion_jax.conditioning.dropping import kept, masked, part_of
from diffusion_jax.core.components import component
from diffusion_jax.core.noise import fold_in, normal, threefry
from diffusion_jax.core.settings import FREE, TRAINING, at_least, check_dropout, inside
from diffusion_jax.core.types import Array, Kind, Kinds
from diffusion_jax.core.waves import WAVES, waves
from diffusion_jax.data.averaging import averaged
from diffusion_jax.data.spec import Declared

NAME, LEVEL = "low", "low_level"  # of the conditions; the first is a batch's entry, too
IMAGE = "image"  # the entry that the low image is made of
METHODS = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}


@component
def low(
    declared: Declared,
    factor: int = 2,
    resize: Literal["bilinear", "nearest", "bicubic"] = "bilinear",
    noise: Annotated[float, TRAINING] = 0.5,
    sampling_noise: Annotated[float, FREE] = 0.1,
    dropout: Annotated[float, TRAINING] = 0.0,
) -> Conditioner:
    """The example's own image at a lower resolution, with noise of a level that is told, too
    (Saharia et al. 2021; Ho et al. 2022, gaussian conditioning augmentation; Saharia et al. 2022,
    section 2.4).

    The image is what a batch's `image` has as means of factor x factor pixels or, where there is
    none, its entry `low`, [B, H / factor, W / factor, C] in the data's units. In [-1, 1] it gets
    the noise of `noised`, is brought to full size and laid beside x, with a channel that says
    whether it is known. Where keys are given, the level is drawn evenly from [0, noise] in training
    and is sampling_noise in sampling; without keys it is 0.

    Args:
      factor: how many pixels of the example are one of the low image, in height and in width.
      resize: how it is brought to full size: bilinear as ADM's upsamplers do, bicubic as SR3,
        or nearest.
      noise: the largest level in training, in [0, 1], where 0 is none and 1 leaves noise alone.
      sampling_noise: the level in sampling, at most that of training; the papers try several.
      dropout: share of the training examples without the low image, for guidance; at least 0,
        below 1.
    """
    check_dropout(dropout)
    at_least(2, factor=factor)
    inside(0, 1, noise=noise)
    inside(0, noise, sampling_noise=sampling_noise)
    if len(declared.shape) != 3:
        raise ValueError(f"low is of images [H, W, C], not of the shape {declared.shape}")
    height, width, channels = declared.shape
    if height % factor or width % factor:
        raise ValueError(f"factor={factor} must divide the images' sides, {height} x {width}")
    whole = declared.range is None
    least, most = declared.range or (0.0, 255.0)

    def told(keys, batch, level, keep):
        if IMAGE in batch:
            values = averaged(jnp.asarray(batch[IMAGE]), factor, whole)
        else:
            values = jnp.asarray(batch[NAME], jnp.float32)
        values = (values - least) * (2.0 / (most - least)) - 1.0
        if keys is not None:
            values = noised(fold_in(keys, part_of("noise of low")), values, level)
        full = (len(values), height, width, channels)
        large = jax.image.resize(values, full, METHODS[resize])
        large = jnp.concatenate([large, jnp.ones((*full[:3], 1))], axis=-1)
        return {NAME: masked(large, keep), LEVEL: masked(waves(level), keep)}

    def train(keys, batch):
        count = len(batch[IMAGE] if IMAGE in batch else batch[NAME])
        level = jnp.zeros(count)
        if keys is not None:
            level = noise * uniform(fold_in(keys, part_of(LEVEL)))
        return batch, told(keys, batch, level, kept(keys, part_of(NAME), dropout, count))

    def sample(keys, batch):
        count = len(batch[IMAGE] if IMAGE in batch else batch[NAME])
        level = jnp.full(count, 0.0 if keys is None else sampling_noise)
        return told(keys, batch, level, jnp.ones(count))

    def null(cond):
        return {name: jnp.zeros_like(cond[name]) for name in (NAME, LEVEL)}

    def example(n):
        image = jnp.zeros((n, height, width, channels + 1))
        return {NAME: image, LEVEL: jnp.zeros((n, 2 * WAVES))}

    return Conditioner(
        kinds=Kinds({NAME: Kind("image", channels + 1), LEVEL: Kind("vector", 2 * WAVES)}),
        reads=(IMAGE,),
        train=train,
        null=null if dropout else None,
        example=example,
        sample=sample,
    )


def noised(keys: jax.Array, images: Array, level: Array) -> jax.Array:
    """Images [B, h, w, C] with noise of a level s [B] in [0, 1]: cos(pi s / 2) x + sin(pi s / 2)
    eps, which keeps the variance of data of variance 1.

    That is the forward process at t = s of the cosine schedule without its offset (Nichol &
    Dhariwal 2021, eq. 17)."""
    angle = 0.5 * jnp.pi * jnp.asarray(level)[:, None, None, None]
    return jnp.cos(angle) * images + jnp.sin(angle) * normal(keys, images.shape[1:])


def uniform(keys: jax.Array) -> jax.Array:
    """[B], each in [0, 1), by its own key."""
    return jax.vmap(jax.random.uniform)(threefry(keys))
