"""What `edit` can do to images, with a run's denoiser, sampler and grid."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditioning import guidance_weight, low_resolution
from diffusion_jax.core.noise import fold_in, initial_noise
from diffusion_jax.core.types import Denoiser, Level, Sampler
from diffusion_jax.denoisers import classifier_free
from diffusion_jax.likelihood import ode
from diffusion_jax.runs.build import Parts
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.draw import make_run_denoiser, make_run_sampler, told
from diffusion_jax.samplers import editing, sample

FRACTIONS = np.linspace(0.0, 1.0, 9, dtype=np.float32)  # of the way between two interpolated images
GREY = 128  # what removed pixels are in the picture


class Job(NamedTuple):
    """What the images of an edit share. mask: bool [H, W, 1], True where an image is kept."""

    config: Config
    parts: Parts
    mask: np.ndarray

    def flow(self, params, asked: dict) -> Denoiser:
        """The denoiser of examples, unguided; asked: what they are conditioned by."""
        return make_run_denoiser(self.config, self.parts, params[0], told(self.parts, asked))

    def drawing(self, params, asked: dict, keys=None) -> tuple[Sampler, Denoiser]:
        """The sampler and the denoiser of examples, guided as config.sampling says; by their keys
        what they are told at random."""
        weight: float | None = self.config.sampling.guidance or None
        if weight and guidance_weight.NAME in self.parts.conditioner.kinds:
            count = len(jax.tree.leaves(asked)[0])
            asked, weight = {**asked, guidance_weight.NAME: jnp.full(count, weight)}, None
        cond = told(self.parts, asked, keys)
        run = (self.config, self.parts, params[0], cond, weight, params[1])
        return make_run_sampler(*run), make_run_denoiser(*run)

    def asked(self, given: dict, prefix: str = "", **changed) -> dict:
        """What the network reads of the given examples, or of those whose names have a prefix."""
        names = [*self.parts.conditioner.reads]
        if low_resolution.NAME in given:  # in place of the image that it would be made of
            names = [low_resolution.NAME, *(n for n in names if n != low_resolution.IMAGE)]
        own = {name: given[prefix + name] for name in names}
        return own | {name: value for name, value in changed.items() if name in own}

    def shown(self, x, i: int = 0):
        """x at the grid's level i, scaled as data are."""
        level = Level(*(jnp.asarray(a)[i] for a in self.parts.grid))
        return x / ode.scale(level)


def as_x0(mask: np.ndarray, parts: Parts) -> np.ndarray:
    """A mask bool [H, W, 1] of pixels as one of x0, [h, w, 1]: what is in part of removed pixels
    is removed."""
    (height, width, _), (rows, columns) = mask.shape, parts.codec.shape[:2]
    if (height, width) in ((1, 1), (rows, columns)):
        return mask
    return np.all(mask.reshape(rows, height // rows, columns, width // columns, 1), axis=(1, 3))


def image_to_image(job: Job, params, given: dict) -> dict:
    """SDEdit: an image noised part of the way, editing.strength, and drawn from there."""
    strength, grid, x0 = job.config.editing.strength, job.parts.grid, given["x0"]
    x, rest = editing.noised(fold_in(given["keys"], 0), x0, grid, strength)
    drawing = job.drawing(params, job.asked(given), given["keys"])
    result = editing.image_to_image(*drawing, given["keys"], x0, grid, strength)
    return {"inputs": job.shown(x, -len(rest.t)), "results": result}


def reconstruct(job: Job, params, given: dict) -> dict:
    """An image encoded as noise by the probability flow, and decoded again."""
    flow = job.flow(params, job.asked(given))
    latent, result = editing.reconstruct(flow, given["x0"], job.parts.grid, job.parts.sampler)
    return {"inputs": job.shown(latent), "results": result, "errors": jnp.abs(result - given["x0"])}


def inpaint(job: Job, params, given: dict) -> dict:
    """RePaint: what editing.mask removes of an image painted anew."""
    x0, keys, grid = given["x0"], given["keys"], job.parts.grid
    first = Level(*(jnp.asarray(a)[0] for a in grid))
    x_init = initial_noise(fold_in(keys, 0), x0.shape[1:], first)
    drawing = job.drawing(params, job.asked(given), given["keys"])
    result = editing.inpaint(
        *drawing, fold_in(keys, 1), x_init, x0, job.mask, grid, job.config.editing.resamples
    )
    return {"inputs": jnp.where(job.mask, x0, GREY / 127.5 - 1.0), "results": result}


def interpolate(job: Job, params, given: dict) -> dict:
    """The way from one image to another on a sphere through their latents; of two classes both
    denoisers are mixed."""
    grid, sampler = job.parts.grid, job.parts.sampler
    asked = [job.asked(given), job.asked(given, "other_")]
    ends = zip((given["x0"], given["other_x0"]), asked, strict=True)
    latents = [editing.encode(job.flow(params, one), x0, grid, sampler) for x0, one in ends]
    between = jax.vmap(editing.interpolate, (0, 0, None))(latents[0], latents[1], FRACTIONS)
    repeat = lambda a: jnp.repeat(a, len(FRACTIONS), axis=0)
    first, second = (job.flow(params, jax.tree.map(repeat, one)) for one in asked)
    # eps = (1 - f) eps_1 + f eps_2
    mixed = classifier_free(first, second, -jnp.tile(FRACTIONS, between.shape[0]))
    result = editing.decode(mixed, between.reshape((-1,) + between.shape[2:]), grid, sampler)
    return {"results": result.reshape(between.shape)}


def translate(job: Job, params, given: dict) -> dict:
    """A dual diffusion implicit bridge: an image encoded with its own class, and decoded with
    editing.label."""
    grid, flow = job.parts.grid, job.flow(params, job.asked(given))
    sampler, target = job.drawing(params, job.asked(given, label=given["target"]))
    latent = editing.encode(flow, given["x0"], grid, job.parts.sampler)
    return {"inputs": job.shown(latent), "results": editing.decode(target, latent, grid, sampler)}


def super_resolution(job: Job, params, given: dict) -> dict:
    """SR3: an image of low resolution, `low`, drawn anew at the run's, as `sample` draws."""
    keys, grid = given["keys"], job.parts.grid
    first = jax.tree.map(lambda a: a[0], grid)
    x_init = initial_noise(fold_in(keys, 0), tuple(job.parts.codec.shape), first)
    sampler, denoiser = job.drawing(params, job.asked(given), keys)
    return {"results": sample(sampler, denoiser, fold_in(keys, 1), x_init, grid)}


TASKS = {
    "super_resolution": super_resolution,
    "image_to_image": image_to_image,
    "reconstruct": reconstruct,
    "inpaint": inpaint,
    "interpolate": interpolate,
    "translate": translate,
}

MASKS = {
    "left": lambda y, x: x < 0.5,
    "right": lambda y, x: x > 0.5,
    "top": lambda y, x: y < 0.5,
    "bottom": lambda y, x: y > 0.5,
    "centre": lambda y, x: (abs(y - 0.5) < 0.25) & (abs(x - 0.5) < 0.25),
}
"""Name -> whether a pixel at (y, x), each in (0, 1) from the top left corner, is removed."""
