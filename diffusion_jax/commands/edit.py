"""The command `edit`: changes given images with a trained run, and shows them beside the
originals."""

import dataclasses
import pathlib
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from PIL import Image

from diffusion_jax.commands.sample import restore_params, weak_params, write_settings
from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.core.files import make_folder, new_folder
from diffusion_jax.core.noise import example_keys, fold_in, initial_noise
from diffusion_jax.core.types import Denoiser, Level, Sampler
from diffusion_jax.data import pipeline, sources
from diffusion_jax.denoisers import classifier_free
from diffusion_jax.devices.parallel import equal_batches, map_examples
from diffusion_jax.likelihood import ode
from diffusion_jax.modalities import pictures
from diffusion_jax.runs.build import Parts, build
from diffusion_jax.runs.config import Config, choose, differences, load
from diffusion_jax.runs.draw import advice, make_run_denoiser, make_run_sampler
from diffusion_jax.samplers import editing
from diffusion_jax.training.step import to_float

FRACTIONS = np.linspace(0.0, 1.0, 9, dtype=np.float32)  # of the way between two interpolated images
GREY = 128  # what removed pixels are in the picture


class Job(NamedTuple):
    """What the images of an edit share. mask: bool [H, W, 1], True where an image is kept."""

    config: Config
    parts: Parts
    mask: np.ndarray

    def flow(self, params, label) -> Denoiser:
        """The denoiser of labels [B], unguided."""
        return make_run_denoiser(self.config, self.parts, params[0], label)

    def drawing(self, params, label) -> tuple[Sampler, Denoiser]:
        """The sampler and the denoiser of labels [B], guided as config.sampling says."""
        run = (
            self.config,
            self.parts,
            params[0],
            label,
            self.config.sampling.guidance or None,
            params[1],
        )
        return make_run_sampler(*run), make_run_denoiser(*run)

    def shown(self, x, i: int = 0):
        """x at the grid's level i, scaled as data are."""
        level = Level(*(jnp.asarray(a)[i] for a in self.parts.grid))
        return x / ode.scale(level)


def image_to_image(job: Job, params, given: dict) -> dict:
    """SDEdit: an image noised part of the way, editing.strength, and drawn from there."""
    strength, grid, x0 = job.config.editing.strength, job.parts.grid, given["x0"]
    x, rest = editing.noised(fold_in(given["keys"], 0), x0, grid, strength)
    result = editing.image_to_image(
        *job.drawing(params, given.get("label")), given["keys"], x0, grid, strength
    )
    return {"inputs": job.shown(x, -len(rest.t)), "results": result}


def reconstruct(job: Job, params, given: dict) -> dict:
    """An image encoded as noise by the probability flow, and decoded again."""
    flow = job.flow(params, given.get("label"))
    latent, result = editing.reconstruct(flow, given["x0"], job.parts.grid, job.parts.sampler)
    return {"inputs": job.shown(latent), "results": result, "errors": jnp.abs(result - given["x0"])}


def inpaint(job: Job, params, given: dict) -> dict:
    """RePaint: what editing.mask removes of an image painted anew."""
    x0, keys, grid = given["x0"], given["keys"], job.parts.grid
    x_init = initial_noise(
        fold_in(keys, 0), x0.shape[1:], Level(*(jnp.asarray(a)[0] for a in grid))
    )
    drawing = job.drawing(params, given.get("label"))
    result = editing.inpaint(
        *drawing, fold_in(keys, 1), x_init, x0, job.mask, grid, job.config.editing.resamples
    )
    return {"inputs": jnp.where(job.mask, x0, GREY / 127.5 - 1.0), "results": result}


def interpolate(job: Job, params, given: dict) -> dict:
    """The way from one image to another on a sphere through their latents; of two classes both
    denoisers are mixed."""
    grid, sampler, labels = (
        job.parts.grid,
        job.parts.sampler,
        (given.get("label"), given.get("other_label")),
    )
    ends = zip((given["x0"], given["other_x0"]), labels, strict=True)
    latents = [editing.encode(job.flow(params, label), x0, grid, sampler) for x0, label in ends]
    between = jax.vmap(editing.interpolate, (0, 0, None))(latents[0], latents[1], FRACTIONS)
    repeated = [None if label is None else jnp.repeat(label, len(FRACTIONS)) for label in labels]
    first, second = (job.flow(params, label) for label in repeated)
    mixed = classifier_free(
        first, second, -jnp.tile(FRACTIONS, between.shape[0])
    )  # eps = (1 - f) eps_1 + f eps_2
    result = editing.decode(mixed, between.reshape((-1,) + between.shape[2:]), grid, sampler)
    return {"results": result.reshape(between.shape)}


def translate(job: Job, params, given: dict) -> dict:
    """A dual diffusion implicit bridge: an image encoded with its own class, and decoded with
    editing.label."""
    grid, (sampler, target) = job.parts.grid, job.drawing(params, given["target"])
    latent = editing.encode(job.flow(params, given["label"]), given["x0"], grid, job.parts.sampler)
    return {"inputs": job.shown(latent), "results": editing.decode(target, latent, grid, sampler)}


TASKS = {
    "image_to_image": image_to_image,
    "reconstruct": reconstruct,
    "inpaint": inpaint,
    "interpolate": interpolate,
    "translate": translate,
}
INVERTING = ("reconstruct", "interpolate", "translate")
INVERTIBLE = ("ddim", "euler", "heun", "heun_flow", "dpm_solver_2", "dpm_solver_3", "adaptive_ode")


def check(config: Config) -> None:
    """Raises UserError for settings of editing that are out of range or that the run cannot
    follow."""
    settings, sampling, classes = config.editing, config.sampling, config.data.num_classes
    choose(tuple(TASKS), settings.task, "editing.task")
    if min(settings.num, settings.resamples) < 1:
        name = "num" if settings.num < 1 else "resamples"
        raise UserError(f"config.editing.{name} must be above 0, not {getattr(settings, name)}")
    if not 0.0 < settings.strength <= 1.0:
        raise UserError(
            f"config.editing.strength must be above 0 and at most 1, not {settings.strength}"
        )
    if settings.task == "translate" and not classes:
        raise UserError(
            "config.editing.task=translate leads from class to class, but this run has none"
        )
    if not -1 <= settings.label < max(classes, 1):
        raise UserError(
            f"config.editing.label must be -1, for the next class, or 0 to {classes - 1}, not {settings.label}"
        )
    if settings.task not in INVERTING:
        return
    if sampling.sampler not in INVERTIBLE or (sampling.sampler == "ddim" and sampling.eta):
        what = f"ddim with eta={sampling.eta}" if sampling.sampler == "ddim" else sampling.sampler
        raise UserError(
            f"config.editing.task={settings.task} inverts the sampler, which {what} does not allow; "
            f"config.sampling.sampler must be one of {', '.join(INVERTIBLE)}"
            + (", eta 0" if what != sampling.sampler else "")
        )
    if sampling.guidance and settings.task != "translate":
        raise UserError(
            f"config.editing.task={settings.task} follows the run's own flow: leave config.sampling.guidance at 0"
        )


MASKS = {
    "left": lambda y, x: x < 0.5,
    "right": lambda y, x: x > 0.5,
    "top": lambda y, x: y < 0.5,
    "bottom": lambda y, x: y > 0.5,
    "centre": lambda y, x: (abs(y - 0.5) < 0.25) & (abs(x - 0.5) < 0.25),
}
"""Name -> whether a pixel at (y, x), each in (0, 1) from the top left corner, is removed."""


def load_mask(config: Config) -> np.ndarray:
    """bool [H, W, 1] of editing.mask, True where pixels are kept."""
    name, (height, width, _) = config.editing.mask, config.data.shape
    if name in MASKS:
        y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
        kept = ~MASKS[name](y[:, None], x[None]) & np.ones((height, width), bool)
    elif name.endswith(".png"):
        kept = load_png(name, "config.editing.mask", (height, width, 1))[..., 0] >= GREY
    else:
        raise UserError(
            f"config.editing.mask must be a .png or a name, not {name!r}; {nearest(name, MASKS)}"
        )
    if kept.all() or not kept.any():
        raise UserError(
            f"config.editing.mask={name} removes {'no' if kept.all() else 'every'} pixel"
        )
    return kept[..., None]


def load_png(path: str, field: str, shape: tuple) -> np.ndarray:
    """uint8 [H, W, C] of a picture of that shape, C of 1 or 3."""
    height, width, channels = shape
    if channels not in (1, 3):
        raise UserError(
            f"{field}={path}: a .png has no {channels} channels, as this run's images do; give an .npz"
        )
    try:
        with Image.open(path) as image:
            size, pixels = image.size, np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except OSError as error:
        raise UserError(
            f"{field}={path} cannot be read: {error.strerror or 'it is no picture'}"
        ) from None
    if size != (width, height):
        raise UserError(
            f"{field}={path} is {size[0]} x {size[1]} pixels, but this run's images are {width} x {height}"
        )
    return pixels.reshape(shape)


def load_npz(path: str, shape: tuple, classes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """`images`, uint8 [N, H, W, C], and `labels` [N], None where there are none, of a file such as
    `sample` writes."""
    try:
        with np.load(path) as file:
            images, labels = file["images"], file.get("labels", None)
    except KeyError:
        raise UserError(f"config.editing.images={path} holds no array `images`") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"config.editing.images={path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise UserError(
            f"config.editing.images={path}: `images` must be uint8 of shape {('N', *shape)}, not {images.dtype} {images.shape}"
        )
    if labels is not None and classes:
        if (
            labels.shape != images.shape[:1]
            or labels.dtype.kind not in "iu"
            or labels.min() < 0
            or labels.max() >= classes
        ):
            raise UserError(
                f"config.editing.images={path}: `labels` must be one of 0 to {classes - 1} for each image"
            )
        labels = labels.astype(np.int32)
    return images, labels


def load_images(config: Config) -> dict[str, np.ndarray]:
    """{"image": uint8 [N, H, W, C], "label": int32 [N] where the run has classes}, N at most
    editing.num."""
    settings, data, path = config.editing, config.data, config.editing.images
    if not path:
        source = sources.load(data, settings.split)
        given = pipeline.examples(source, range(min(settings.num, len(source))))
        images, labels = given["image"], given.get("label")
    elif path.endswith(".npz"):
        images, labels = load_npz(path, tuple(data.shape), data.num_classes)
    elif path.endswith(".png"):
        images, labels = load_png(path, "config.editing.images", tuple(data.shape))[None], None
        labels = np.array([config.sampling.label], np.int32) if config.sampling.label >= 0 else None
    else:
        raise UserError(f"config.editing.images must be a .npz or a .png, not {path!r}")
    if data.num_classes and labels is None:
        raise UserError(
            f"config.editing.images={path} has no labels, which this run needs: "
            "an .npz may hold them, a PNG's is config.sampling.label"
        )
    if settings.task == "interpolate" and min(len(images), settings.num) < 2:
        raise UserError("config.editing.task=interpolate needs two images or more")
    given = {"image": images[: settings.num]}
    return (
        given | {"label": labels[: settings.num]}
        if data.num_classes and labels is not None
        else given
    )


def run(job: Job, params, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the task makes of the images, on all devices, sampling.batch_size at a time."""
    config, count = job.config, len(given["image"])
    given = given | {"index": np.arange(count)}
    if config.editing.task == "translate":
        label = config.editing.label
        given["target"] = (
            (given["label"] + 1) % config.data.num_classes
            if label < 0
            else np.full_like(given["label"], label)
        )
    if config.editing.task == "interpolate":
        count //= 2
        other = {f"other_{name}": array[1 : 2 * count : 2] for name, array in given.items()}
        given = {name: array[: 2 * count : 2] for name, array in given.items()} | other

    def one_batch(params, given):
        keys = example_keys(jax.random.key(config.sampling.seed), given["index"])
        floats = {
            name.replace("image", "x0"): to_float(a)
            for name, a in given.items()
            if name.endswith("image")
        }
        return TASKS[config.editing.task](job, params, given | floats | {"keys": keys})

    mapped, size, parts = map_examples(one_batch), min(config.sampling.batch_size, count), []
    for index, kept in tqdm.tqdm(list(equal_batches(count, size)), unit="batch"):
        done = mapped(params, {name: array[index] for name, array in given.items()})
        parts.append({name: array[:kept] for name, array in done.items()})
    done = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return done | ({"targets": given["target"]} if "target" in given else {})


def picture(task: str, originals: np.ndarray, done: dict[str, np.ndarray]) -> np.ndarray:
    """uint8: original, what was done to it and result in a column; a pair and what lies between in
    a row."""
    results = pictures.to_uint8(done["results"])
    if task == "interpolate":
        pairs = originals[: 2 * len(results)].reshape((len(results), 2) + originals.shape[1:])
        shown = np.concatenate([pairs[:, :1], results, pairs[:, 1:]], axis=1).swapaxes(0, 1)
    else:
        shown = np.stack([originals, pictures.to_uint8(done["inputs"]), results], axis=1)
    return pictures.enlarge(
        pictures.tile(shown.reshape((-1,) + shown.shape[2:]), shown.shape[1]), 800
    )


def edit(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Edits images as config.editing says, and writes grid.png and edits.npz to
    workdir/edits/<how>, which it returns.

    edits.npz holds uint8 `originals` [N, H, W, C], `results` and, but for an interpolation,
    `inputs`, what was done to the originals; `labels` [N] where the run has classes, `targets` [N]
    of a translation, `mask` of a painting, and `errors`, float, of a reconstruction. An
    interpolation's `results` are [N / 2, F, H, W, C], at its `fractions` [F]."""
    changed = differences(load(workdir / "config.json"), config)
    if changed:
        raise UserError(
            f"edit takes only config.editing.* and config.sampling.* settings, not {'; '.join(changed)}"
        )
    parts, settings, sampling = build(config), config.editing, config.sampling
    check(config)
    if settings.task in INVERTING:  # clipping would leave the flow
        config = dataclasses.replace(
            config, sampling=dataclasses.replace(sampling, clip_x0=False, threshold=0.0)
        )
    job, given = Job(config, parts, load_mask(config)), load_images(config)
    params, step = restore_params(config, parts, workdir, sampling.ema)
    weak = weak_params(config)
    if note := advice(config, parts.grid):
        print(note)
    make_folder(workdir / "edits")
    done = run(job, (params, weak), given)

    detail = {
        "image_to_image": f"-strength{settings.strength:g}",
        "inpaint": f"-{pathlib.Path(settings.mask).stem}",
    }
    if settings.task == "translate" and settings.label >= 0:
        detail["translate"] = f"-to{settings.label}"
    kind = f"step{step}-{settings.task}{detail.get(settings.task, '')}-{sampling.sampler}-{sampling.steps}"
    kind += ("" if sampling.ema else "-raw") + (
        f"-guidance{sampling.guidance:g}" if sampling.guidance else ""
    )
    folder = new_folder(workdir / "edits", f"{kind}-seed{sampling.seed}")
    pictures.save(folder / "grid.png", picture(settings.task, given["image"], done))
    arrays: dict[str, Any] = {"originals": given["image"]} | done
    arrays |= {
        name: pictures.to_uint8(done[name]) for name in ("inputs", "results") if name in done
    }
    arrays |= {"labels": given["label"]} if "label" in given else {}
    arrays |= {"mask": job.mask} if settings.task == "inpaint" else {}
    arrays |= {"fractions": FRACTIONS} if settings.task == "interpolate" else {}
    np.savez(folder / "edits.npz", **arrays)
    write_settings(folder, sampling=config.sampling, editing=settings)
    if "errors" in done:
        print(
            f"error a pixel, of images in [-1, 1]: largest {done['errors'].max():.2g}, mean {done['errors'].mean():.2g}"
        )
    return folder
