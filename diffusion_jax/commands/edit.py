"""Changes given images with a trained run, and shows them beside the originals.

python main.py edit --workdir DIR
"""

import pathlib
import zipfile
from typing import Any

import numpy as np
import tqdm
from PIL import Image

from diffusion_jax.conditioning import low_resolution
from diffusion_jax.core import noise
from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.core.files import make_folder, new_folder
from diffusion_jax.core.noise import example_keys
from diffusion_jax.data import pipeline
from diffusion_jax.data.averaging import averaged
from diffusion_jax.devices.parallel import equal_batches, map_examples, place, precision
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import draw, folders
from diffusion_jax.runs.advice import advice
from diffusion_jax.runs.build import Parts, build, load_source
from diffusion_jax.runs.checks import check_attention, check_diffuses
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.editing import FRACTIONS, GREY, MASKS, TASKS, Job, as_x0
from diffusion_jax.runs.half_size import check_whole
from diffusion_jax.runs.latents import of_images
from diffusion_jax.runs.open import check_same, restore_params, weak_params
from diffusion_jax.runs.prompts import Prompts
from diffusion_jax.runs.settings import copy

SUPER_RESOLUTION = "super_resolution"
SEEN = ("inputs", "results")  # what a task returns of x0, which is shown as data
INVERTING = ("reconstruct", "interpolate", "translate")
INVERTIBLE = ("ddim", "euler", "heun", "heun_flow", "dpm_solver_2", "dpm_solver_3", "adaptive_ode")


def run(given: Given) -> str:
    """What `main.py edit` does with its flags."""
    return f"edits: {edit(given.config, given.workdir)}"


def check_editing(config: Config) -> None:
    """Raises UserError for settings of editing that are out of range or that the run cannot
    follow."""
    settings, sampling, classes = config.editing, config.sampling, draw.classes(config)
    if settings.task not in TASKS:
        raise UserError(
            f"config.editing.task has no {settings.task!r}; {nearest(settings.task, TASKS)}"
        )
    if sampling.tolerance:
        raise UserError("config.sampling.tolerance chooses steps for sample and evaluate, not edit")
    check_whole(config, "an image is edited")
    if settings.task == "translate" and not classes:
        raise UserError(
            "config.editing.task=translate leads from class to class, but this run has none"
        )
    if not -1 <= settings.label < max(classes, 1):
        raise UserError(
            f"config.editing.label must be -1, for the next class, or 0 to {classes - 1}, not "
            f"{settings.label}"
        )
    told_low = any(one.entry == low_resolution.NAME for one in config.conditioning)
    if settings.task == SUPER_RESOLUTION and not told_low:
        raise UserError(
            "config.editing.task=super_resolution is of a run that is told an image of low "
            "resolution, as by config.conditioning=low; this one is not"
        )
    if settings.task not in INVERTING:
        return
    name = sampling.sampler.entry
    eta = sampling.sampler.values().get("eta", 0.0)
    if name not in INVERTIBLE or eta:
        what = f"{name} with eta={eta}" if eta else name
        raise UserError(
            f"config.editing.task={settings.task} inverts the sampler, which {what} does not "
            f"allow; config.sampling.sampler must be one of {', '.join(INVERTIBLE)}"
            + (", eta 0" if eta else "")
        )
    if sampling.guidance and settings.task != "translate":
        raise UserError(
            f"config.editing.task={settings.task} follows the run's own flow: leave "
            "config.sampling.guidance at 0"
        )


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
            f"{field}={path}: a .png has no {channels} channels, as this run's images do; give an "
            ".npz"
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
            f"{field}={path} is {size[0]} x {size[1]} pixels, but this run's images are {width} x "
            f"{height}"
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
            f"config.editing.images={path} cannot be read: "
            f"{getattr(error, 'strerror', None) or error}"
        ) from None
    if images.dtype != np.uint8 or images.shape[1:] != shape or len(images) == 0:
        raise UserError(
            f"config.editing.images={path}: `images` must be uint8 of shape {('N', *shape)}, not "
            f"{images.dtype} {images.shape}"
        )
    if labels is not None and classes:
        if (
            labels.shape != images.shape[:1]
            or labels.dtype.kind not in "iu"
            or labels.min() < 0
            or labels.max() >= classes
        ):
            raise UserError(
                f"config.editing.images={path}: `labels` must be one of 0 to {classes - 1} for "
                "each image"
            )
        labels = labels.astype(np.int32)
    return images, labels


def load_images(config: Config) -> dict[str, np.ndarray]:
    """The examples that are edited, at most editing.num: `image` uint8 [N, H, W, C], `label` int32
    [N] where the run has classes, and what else the split's examples have."""
    settings, shape, path = config.editing, tuple(config.data.shape), config.editing.images
    if settings.task == SUPER_RESOLUTION:
        factor = config.conditioning.low.factor
        shape = (shape[0] // factor, shape[1] // factor, shape[2])
    classes = draw.classes(config)
    if not path:
        source = load_source(of_images(config), settings.split)
        given = pipeline.examples(source, range(min(settings.num, len(source))))
    elif path.endswith((".npz", ".png")):
        given = load_file(config, path, shape, classes)
    else:
        raise UserError(f"config.editing.images must be a .npz or a .png, not {path!r}")
    if not classes:
        given.pop("label", None)
    elif "label" not in given:
        raise UserError(
            f"config.editing.images={path} has no labels, which this run needs: "
            "an .npz may hold them, a PNG's is config.sampling.label"
        )
    given = {name: array[: settings.num] for name, array in given.items()}
    if settings.task == "interpolate" and len(given["image"]) < 2:
        raise UserError("config.editing.task=interpolate needs two images or more")
    return given


def lowered(config: Config, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The examples with `low`, their image at low resolution, in place of `image`."""
    low = given["image"]
    if not config.editing.images:
        low = averaged(low, config.conditioning.low.factor, rounded=True).astype(np.uint8)
    return {low_resolution.NAME: low} | {n: a for n, a in given.items() if n != "image"}


def by_prompts(config: Config, parts: Parts, count: int) -> dict[str, np.ndarray]:
    """What the images' prompts say, one each in turn, as entries of a batch; nothing without any.

    UserError for weighted texts and a negative prompt, which edits do not take."""
    if not config.sampling.prompts:
        return {}
    prompts, index = Prompts(config, parts), np.arange(count)
    if prompts.beside(index):
        raise UserError("edit takes one text a prompt, and no config.sampling.negative")
    return prompts.asked(index)


def load_file(config: Config, path: str, shape: tuple, classes: int) -> dict[str, np.ndarray]:
    """`image` and, where there are any, `label` of a file."""
    if path.endswith(".npz"):
        images, labels = load_npz(path, shape, classes)
        return {"image": images} | ({} if labels is None else {"label": labels})
    given = {"image": load_png(path, "config.editing.images", shape)[None]}
    label = config.sampling.label
    return given | ({"label": np.array([label], np.int32)} if label >= 0 else {})


def apply(job: Job, params, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the task makes of the images, on all devices, sampling.batch_size at a time."""
    config, count = job.config, len(next(iter(given.values())))
    task, codec = config.editing.task, job.parts.codec
    given = given | {"index": np.arange(count)}
    if task == "translate":
        label, own = config.editing.label, given["label"]
        following = (own + 1) % config.data.num_classes
        given["target"] = following if label < 0 else np.full_like(own, label)
    if task == "interpolate":
        count //= 2
        other = {f"other_{name}": array[1 : 2 * count : 2] for name, array in given.items()}
        given = {name: array[: 2 * count : 2] for name, array in given.items()} | other

    def one_batch(params, given):
        keys = example_keys(noise.key(config.sampling.seed), given["index"])
        encoded = {
            name.replace("image", "x0"): codec.encode(params[2], None, a)
            for name, a in given.items()
            if name in ("image", "other_image")
        }
        done = TASKS[task](job, params, given | encoded | {"keys": keys})
        return done | {name: seen(params[2], done[name]) for name in SEEN if name in done}

    def seen(params, x0):
        """x0 [..., *shape] as data."""
        data = codec.decode(params, x0.reshape(-1, *codec.shape))
        return data.reshape(*x0.shape[: -len(codec.shape)], *data.shape[1:])

    mapped, size, parts = map_examples(one_batch), min(config.sampling.batch_size, count), []
    with precision(config.model.values().get("dtype")):
        for index, kept in tqdm.tqdm(list(equal_batches(count, size)), unit="batch"):
            done = mapped(params, {name: array[index] for name, array in given.items()})
            parts.append({name: array[:kept] for name, array in done.items()})
    done = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return done | ({"targets": given["target"]} if "target" in given else {})


def picture(task: str, originals: np.ndarray, done: dict[str, np.ndarray]) -> np.ndarray:
    """uint8: original, what was done to it and result in a column; a pair and what lies between in
    a row."""
    results = done["results"]
    if task == "interpolate":
        pairs = originals[: 2 * len(results)].reshape((len(results), 2) + originals.shape[1:])
        shown = np.concatenate([pairs[:, :1], results, pairs[:, 1:]], axis=1).swapaxes(0, 1)
    else:
        inputs = done["inputs"]
        times = results.shape[1] // inputs.shape[1]  # above 1 of super-resolution
        seen = [originals] if originals.shape == results.shape else []
        seen += [inputs.repeat(times, axis=1).repeat(times, axis=2), results]
        shown = np.stack(seen, axis=1)
    return pictures.enlarge(
        pictures.tile(shown.reshape((-1,) + shown.shape[2:]), shown.shape[1]), 800
    )


def edit(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Edits images as config.editing says, and writes grid.png and edits.npz to
    workdir/edits/<how>, which it returns.

    edits.npz holds uint8 `originals` [N, H, W, C], `results` and, but for an interpolation,
    `inputs`, what was done to the originals; `labels` [N] where the run has classes, `targets` [N]
    of a translation, `mask` of a painting, and `errors`, float, of a reconstruction. An
    interpolation's `results` are [N / 2, F, H, W, C], at its `fractions` [F]. Of super-resolution
    `inputs` are what the run is told, and a file's images have no `originals`."""
    only = "edit takes only config.editing.* and config.sampling.* settings"
    check_same(config, workdir, only)
    check_diffuses(config, "edits are")
    parts, settings, sampling = build(config), config.editing, config.sampling
    check_editing(config)
    if parts.modality.entry != "image" or (parts.codec.bins != 256 and not parts.codec.moments):
        raise UserError("edit changes 8-bit images, or their latents, which this run's x0 is not")
    if settings.task in INVERTING:  # clipping would leave the flow
        config = copy(config)
        config.sampling.clip_x0, config.sampling.threshold = False, 0.0
    mask = load_mask(config) if settings.task == "inpaint" else np.ones((1, 1, 1), bool)
    job, given = Job(config, parts, as_x0(mask, parts)), load_images(config)
    given |= by_prompts(config, parts, len(given["image"]))
    if missing := [name for name in parts.conditioner.reads if name not in given]:
        raise UserError(
            f"config.editing.images={settings.images} has no {missing[0]!r}, which this run is "
            "told; leave it empty, for examples of the split"
        )
    check_attention(config)
    params, step = restore_params(config, parts, workdir, sampling.ema)
    weak = weak_params(config, parts)
    if note := advice(config, parts.grid):
        print(note)
    make_folder(workdir / "edits")
    originals = given["image"]
    if settings.task == SUPER_RESOLUTION:
        given = lowered(config, given)
    done = apply(job, (params, weak, place(parts.codec.params)), given)
    if settings.task == SUPER_RESOLUTION:
        done["inputs"] = given[low_resolution.NAME]
    if settings.task == "inpaint":  # latents have the removed pixels' neighbours in them
        done["inputs"] = np.where(mask, originals, GREY).astype(np.uint8)
        done["results"] = np.where(mask, originals, done["results"])

    detail = {
        "image_to_image": f"-strength{settings.strength:g}",
        "inpaint": f"-{pathlib.Path(settings.mask).stem}",
    }
    if settings.task == "translate" and settings.label >= 0:
        detail["translate"] = f"-to{settings.label}"
    kind = f"step{step}-{settings.task}{detail.get(settings.task, '')}"
    kind += f"-{sampling.sampler.entry}-{sampling.steps}" + ("" if sampling.ema else "-raw")
    kind += f"-guidance{sampling.guidance:g}" if sampling.guidance else ""
    folder = new_folder(workdir / "edits", f"{kind}-seed{sampling.seed}")
    pictures.save(folder / "grid.png", picture(settings.task, originals, done))
    arrays: dict[str, Any] = {"originals": originals} | done
    if settings.task == SUPER_RESOLUTION and settings.images:
        del arrays["originals"]
    arrays |= {"labels": given["label"]} if "label" in given else {}
    arrays |= {"mask": mask} if settings.task == "inpaint" else {}
    arrays |= {"fractions": FRACTIONS} if settings.task == "interpolate" else {}
    np.savez(folder / "edits.npz", **arrays)
    folders.write_settings(config, folder, sampling=config.sampling, editing=settings)
    if "errors" in done:
        errors = done["errors"]
        of = "latent's number" if parts.codec.moments else "pixel, of images in [-1, 1]"
        print(f"error a {of}: largest {errors.max():.2g}, mean {errors.mean():.2g}")
    return folder
