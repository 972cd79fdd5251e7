"""Scores of what a run draws, against its data: in training, and by the command `evaluate`."""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np

from diffusion_jax.conditioning import low_resolution
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import pipeline
from diffusion_jax.devices.parallel import map_examples, place, precision
from diffusion_jax.devices.processes import primary
from diffusion_jax.evaluation import features, memorisation, references
from diffusion_jax.evaluation.extract import Extracted, extract, key
from diffusion_jax.evaluation.scores import scores
from diffusion_jax.interop.files import fingerprint
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import bits
from diffusion_jax.runs.build import Parts, load_source
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.latents import of_images
from diffusion_jax.runs.open import TrainedRun
from diffusion_jax.runs.settings import as_values

# settings of sampling that change no sample
NOT_HOW = ("num", "batch_size", "gif", "strip", "predicted")


def run_data(config: Config, declared: bool = True) -> references.RunData:
    """The run's data, as a reference for others; of no shape where the config declares none."""
    source = config.data.source
    values = source.values()
    called = values.get("name") or pathlib.Path(values.get("folder", "")).name or source.entry
    return references.RunData(
        shape=tuple(config.data.shape) if declared else (),
        called=called,
        load=lambda split: load_source(of_images(config), split),
        resize=values.get("resize"),
        unreadable=values.get("unreadable", "fail"),
    )


def identity(config: Config, run: TrainedRun, function: features.Features) -> dict:
    """What the features of a run's samples depend on."""
    found = {
        "step": run.step,
        "ema": config.sampling.ema,
        "network": fingerprint(run.params),
        "sampling": how_sampled(as_values(config.sampling)),
    }
    if any(one.entry == low_resolution.NAME for one in config.conditioning):
        found |= {"conditioning": as_values(config.conditioning)}
    found |= {"features": function.record}
    found |= {"weak": fingerprint(run.weak)} if run.weak is not None else {}
    return found | ({"tile": config.codec.tile} if run.parts.codec.moments else {})


def how_sampled(values: dict) -> dict:
    """What samples depend on of the settings of sampling."""
    return {name: value for name, value in values.items() if name not in NOT_HOW}


def check_width(
    function: features.Features, shape: tuple[int, ...], reference: references.Reference
) -> None:
    """Raises UserError, before samples are drawn, where their features and the reference's cannot
    be compared."""
    width = function.apply(np.zeros((1, *shape), np.uint8))["features"].shape[1]
    if primary():
        references.check_width(width, reference)


def check_writable(folder: pathlib.Path) -> None:
    """Raises UserError where the folder could not be made or written. It is not made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder} cannot be written: {there} is "
            f"{'not writable' if there.is_dir() else 'no folder'}"
        )


def check_images(config: Config, parts: Parts) -> None:
    """Raises UserError where a run's data are no 8-bit images, which scores are of."""
    if parts.modality.entry != "image" or config.data.source.values().get("range"):
        raise UserError("scores are of 8-bit images, which this run's data are not")


def check_enough(config: Config, num: int, name: str) -> None:
    """Raises UserError where more images are to be reconstructed than are held out: some would
    count twice."""
    count = len(load_source(config, config.data.eval_split))
    if num > count:
        raise UserError(f"config.evaluation.{name}={num}, but there are {count} held-out images to "
                        "be reconstructed")  # fmt: skip


def make_score(config: Config, parts: Parts) -> Callable:
    """score(draw, params) -> {name: number} of evaluation.every_num samples, for the training loop.

    draw: (params, index) -> samples uint8 [b, H, W, C]. The reference is the training split; it is
    computed at the first call.
    """
    check_images(config, parts)
    if parts.objective.reconstruct:
        check_enough(config, config.evaluation.every_num, "every_num")
    settings, data = config.evaluation, config.data
    function, known = features.load(settings.features, settings.weights), []
    function.apply(np.zeros((1, *data.shape), np.uint8))  # that these are features of such images

    def score(draw: Callable, params) -> dict[str, float]:
        if not known:
            known.append(
                references.reference(
                    data.train_split, run_data(config), function, settings.batch_size
                )
            )
        with tempfile.TemporaryDirectory() as folder:
            extracted = Extracted(pathlib.Path(folder), {}, tuple(data.shape))
            samples, count = sampled(draw, params), settings.every_num
            extract(extracted, function, samples, count, settings.batch_size, "evaluation")
            found = scores(extracted, count, known[0], 0, settings.subsets) if primary() else {}
        return {f"evaluation/{name}": value for name, value in scalars(found).items()}

    return score


def sampled(draw: Callable, params) -> Callable:
    """numbers [b] -> samples uint8 [b, H, W, C]; draw: (params, numbers) -> the same."""
    return lambda index: draw(params, index)


def bits_per_dim(config: Config, parts: Parts, params) -> dict:
    """By the variational bound, where the schedule is a table, and by the ODE, of the first
    held-out examples.

    params: those that the samples are drawn with.
    """
    likelihood = dataclasses.replace(
        config.likelihood, examples=config.evaluation.bits_per_dim, ema=config.sampling.ema
    )
    config = dataclasses.replace(config, likelihood=likelihood)
    source, found, count = load_source(config, likelihood.split), {}, 0
    ways = {"bound": bits.chain(config, parts)} if parts.schedule.num_steps else {}
    for method, grid in (ways | {"ode": None}).items():
        total = bits.measure(config, parts, params, grid, source)["total"]
        count, error = len(total), bits.standard_error(total)
        found[method] = {"value": float(total.mean()), "standard_error": error}
    return found | {"examples": count, "likelihood": as_values(likelihood)}


def floor(
    config: Config,
    parts: Parts,
    function: features.Features,
    reference: references.Reference,
    folder: pathlib.Path,
    split: str,
) -> dict:
    """The FID of a split's images, evenly spread, encoded and decoded: what the samples' would be
    if their latents were those of data. Kept in a folder of that name, not made again.

    At most evaluation.num images; {} on all processes but the first."""
    source, codec = load_source(of_images(config), split), parts.codec
    count = min(config.evaluation.num, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int)
    mapped = map_examples(
        lambda params, data: codec.decode(params, codec.encode(params, None, data))
    )
    params = place(codec.params)

    def given_back(index: np.ndarray) -> np.ndarray:
        images = pipeline.examples(source, chosen[np.minimum(index, count - 1)])["image"]
        with precision(None):
            return mapped(params, images)

    record = {"codec": as_values(config)["codec"], "features": function.record, "split": split}
    extracted = Extracted(
        folder / f"floor-{key(record | {'of': count})}", record, config.data.shape
    )
    extract(extracted, function, given_back, count, config.evaluation.batch_size, "reconstructions")
    if not primary():
        return {}
    found = scores(extracted, count, reference, 0, config.evaluation.subsets)
    return {"fid": found["fid"], "images": count, "split": split}


def check_measures(config: Config, parts: Parts) -> None:
    """Raises UserError for what would be missed only when all samples are drawn."""
    check_images(config, parts)
    if parts.objective.reconstruct:
        check_enough(config, config.evaluation.num, "num")
    if config.evaluation.bits_per_dim:
        bits.check_bins(parts)
        load_source(config, config.likelihood.split)
        if parts.schedule.num_steps:
            bits.chain(config, parts)
    if config.evaluation.memorised:
        load_source(of_images(config), config.data.eval_split)


def memorised(config: Config, samples: np.ndarray, picture: pathlib.Path) -> dict:
    """How near samples uint8 [N, H, W, C], and as many held-out images, come to training images;
    draws the nearest."""
    data = config.data
    train, held_out = (
        load_source(of_images(config), split) for split in (data.train_split, data.eval_split)
    )
    index = np.arange(min(len(samples), len(held_out)))
    others = pipeline.examples(held_out, index)["image"]
    found = memorisation.memorisation(samples, others, train, data.flip, progress=True)
    shown = memorisation.picture(samples, train, found.neighbours)
    pictures.save(picture, pictures.enlarge(shown, 600))
    return {"samples": found.samples._asdict(), "held_out": found.held_out._asdict()}


def scalars(report: dict) -> dict[str, float]:
    """The report's chief numbers by their names."""
    nested = {"fid": "value", "fid_infinity": "value", "kid": "mean", "inception_score": "mean"}
    found = {name: report[name][inner] for name, inner in nested.items() if name in report}
    if "floor" in report:
        found["fid_floor"] = report["floor"]["fid"]["value"]
    for name in ("spatial_fid", "precision", "recall", "density", "coverage"):
        if name in report:
            found[name] = report[name]
    for method in ("bound", "ode"):
        if method in report.get("bits_per_dim", {}):
            found[f"bits_per_dim_{method}"] = report["bits_per_dim"][method]["value"]
    return found
