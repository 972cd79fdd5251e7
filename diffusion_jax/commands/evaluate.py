"""The command `evaluate`: FID and its kin, bits/dim and memorisation of a run's samples, or FID of
any two sets of images."""

import dataclasses
import json
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable

import jax
import numpy as np

from diffusion_jax.commands import nll
from diffusion_jax.commands import sample as generate
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.core.version import __version__
from diffusion_jax.data import pipeline, sources
from diffusion_jax.devices.parallel import primary, process, start, together, wait_for_all
from diffusion_jax.evaluation import features, memorisation, references
from diffusion_jax.evaluation.extract import Extracted, extract, key
from diffusion_jax.evaluation.scores import scores
from diffusion_jax.interop.files import fingerprint
from diffusion_jax.modalities import pictures
from diffusion_jax.runs.build import Parts, check_ranges
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config, check_types
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.training.events import Events

GRID = 100  # samples in the picture
NOT_HOW = (
    "num",
    "batch_size",
    "gif",
    "strip",
    "predicted",
)  # settings of sampling that change no sample


def command(given: Given) -> pathlib.Path:
    """What `main.py evaluate` does with its flags: `evaluate` or, with --images, `compare`."""
    start()
    with together():
        if process()[1] > 1:
            signal.signal(
                signal.SIGTERM, signal.SIG_DFL
            )  # JAX's own handler waits to be asked; features go on anyway
        path = chosen(given)
        wait_for_all("evaluated")
        return path


def chosen(given: Given) -> pathlib.Path:
    if given.images and not given.against:
        raise UserError(
            "--against is missing: the folder, file or split that the images are compared with"
        )
    try:
        if not given.images:
            return evaluate(given.config, given.workdir, given.against)
        return compare(given.config, given.workdir, given.images, given.against)
    except OSError as error:  # a full disk, a folder that is not ours; what is there stays
        raise UserError(
            f"{error.filename or given.workdir} cannot be read or written: {error.strerror or error}"
        ) from error


def evaluate(config: Config, workdir: pathlib.Path, against: str = "") -> pathlib.Path:
    """Scores evaluation.num samples of a run; writes workdir/evaluations/<how>/report-<num>.json
    and pictures; its path.

    against: a folder, an .npz or .npy of images, a file of statistics, or a split; empty for the
    training split. Samples and references whose features were made before, by this command or one
    that was stopped, are not made again."""
    settings, data = config.evaluation, config.data
    run = generate.open_run(
        config, workdir, "evaluate takes only config.sampling, .evaluation and .likelihood settings"
    )
    check_measures(config, run.parts)
    check_writable(workdir / "evaluations")
    function = features.load(settings.features, settings.weights)
    reference = references.reference(
        against or data.train_split, data, function, settings.batch_size
    )
    check_width(function, tuple(data.shape), reference)
    sampling = {
        name: value
        for name, value in dataclasses.asdict(config.sampling).items()
        if name not in NOT_HOW
    }
    protocol = {
        "step": run.step,
        "ema": config.sampling.ema,
        "network": fingerprint(run.params),
        "sampling": sampling,
    }
    protocol |= {"features": function.record} | (
        {"weak": fingerprint(run.weak)} if run.weak is not None else {}
    )
    how = f"{generate.manner(config, run.parts, run.step)}-{function.name}-{key(protocol)}"
    shown = max(GRID, settings.memorised)
    extracted = Extracted(workdir / "evaluations" / how, protocol, tuple(data.shape), shown)
    samples = sampled(make_generate(config, run.parts, weak=run.weak), run.params)
    extract(extracted, function, samples, settings.num, settings.batch_size, "samples")

    bits = (
        bits_per_dim(config, run.parts, run.params) if settings.bits_per_dim else {}
    )  # by all processes, as the samples
    if not primary():
        return extracted.folder
    report = scores(extracted, settings.num, reference, settings.replicates, settings.subsets)
    report |= {"bits_per_dim": bits} if bits else {}
    images, folder = extracted.images.array(min(shown, settings.num)), extracted.folder
    pictures.save(folder / "samples.png", generate.grid(config, images[:GRID] / 127.5 - 1.0))
    if settings.memorised:
        report["memorisation"] = memorised(
            config, images[: settings.memorised], folder / "memorised.png"
        )
    report["protocol"] = protocol | surroundings(settings.num, reference, settings.replicates)
    other = (
        "" if against in ("", data.train_split) else f"-against-{key(reference.statistics.record)}"
    )
    path = write_report(folder / f"report-{settings.num}{other}.json", report)
    with Events(workdir / "tensorboard") as events:
        for name, value in scalars(report).items():
            events.scalar(f"evaluation-{settings.num}/{name}", value, run.step)
    print(summary(report))
    return path


def compare(config: Config, workdir: pathlib.Path, images: str, against: str) -> pathlib.Path:
    """Scores one set of images against another, whoever made them; writes a report in
    workdir/evaluations, returns its path.

    images, against: as in `evaluate`. A folder's images are brought to data.shape; where it is
    empty they stay as they are, and no splits can be named."""
    check_types(config)
    if config.data.shape:
        check_ranges(config)
    settings, data = config.evaluation, config.data
    function = features.load(settings.features, settings.weights)
    check_writable(workdir / "evaluations")
    samples = references.image_set(images, data)
    reference = references.reference(against, data, function, settings.batch_size)
    extracted, count = references.extracted(samples, function), len(samples.source)
    extract(
        extracted,
        function,
        samples.images,
        count,
        settings.batch_size,
        f"{function.name} of {images}",
    )
    if not primary():
        return extracted.folder
    report = scores(extracted, count, reference, settings.replicates, settings.subsets)
    report["protocol"] = {"images": samples.record, "features": function.record}
    report["protocol"] |= surroundings(count, reference, settings.replicates)
    print(summary(report))
    name = f"{extracted.folder.name}-against-{key(report['protocol']['reference'])}.json"
    return write_report(make_folder(workdir / "evaluations") / name, report)


def check_width(
    function: features.Features, shape: tuple[int, ...], reference: references.Reference
) -> None:
    """Raises UserError, before samples are drawn, where their features and the reference's cannot
    be compared."""
    width = function.apply(np.zeros((1, *shape), np.uint8))["features"].shape[1]
    if primary():
        references.check_width(width, reference)


def make_score(config: Config) -> Callable:
    """score(draw, params) -> {name: number} of evaluation.every_num samples, for the training loop.

    draw: (params, index) -> float images. The reference is the training split; it is computed at
    the first call."""
    settings, data = config.evaluation, config.data
    function, known = features.load(settings.features, settings.weights), []
    function.apply(
        np.zeros((1, *data.shape), np.uint8)
    )  # features of other images say so before training

    def score(draw: Callable, params) -> dict[str, float]:
        if not known:
            known.append(
                references.reference(data.train_split, data, function, settings.batch_size)
            )
        with tempfile.TemporaryDirectory() as folder:
            extracted = Extracted(pathlib.Path(folder), {}, tuple(data.shape))
            extract(
                extracted,
                function,
                sampled(draw, params),
                settings.every_num,
                settings.batch_size,
                "evaluation",
            )
            found = (
                scores(extracted, settings.every_num, known[0], 0, settings.subsets)
                if primary()
                else {}
            )
        found = scalars(found)
        return {f"evaluation/{name}": value for name, value in found.items()}

    return score


def sampled(draw: Callable, params) -> Callable:
    """numbers [b] -> samples uint8 [b, H, W, C]; draw: (params, index) -> float images."""
    return lambda index: pictures.to_uint8(draw(params, index))


def bits_per_dim(config: Config, parts: Parts, params) -> dict:
    """By the variational bound, where the schedule is a table, and by the ODE, of the first
    held-out examples.

    params: those that the samples are drawn with.
    """
    likelihood = dataclasses.replace(
        config.likelihood, examples=config.evaluation.bits_per_dim, ema=config.sampling.ema
    )
    config = dataclasses.replace(config, likelihood=likelihood)
    source, found = sources.load(config.data, likelihood.split), {}
    for method, grid in (
        ("bound", nll.chain(config, parts) if parts.schedule.num_steps else None),
        ("ode", None),
    ):
        if method == "bound" and grid is None:
            continue
        total = nll.measure(config, parts, params, grid, source)["total"]
        found[method] = {"value": float(total.mean()), "standard_error": nll.standard_error(total)}
    return found | {"examples": len(total), "likelihood": dataclasses.asdict(likelihood)}


def check_measures(config: Config, parts: Parts) -> None:
    """Raises UserError for what would be missed only when all samples are drawn."""
    if config.evaluation.bits_per_dim:
        sources.load(config.data, config.likelihood.split)
        if parts.schedule.num_steps:
            nll.chain(config, parts)
    if config.evaluation.memorised:
        sources.load(config.data, config.data.eval_split)


def check_writable(folder: pathlib.Path) -> None:
    """Raises UserError where the folder could not be made or written. It is not made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{folder} cannot be written: {there} is {'not writable' if there.is_dir() else 'no folder'}"
        )


def memorised(config: Config, samples: np.ndarray, picture: pathlib.Path) -> dict:
    """How near samples uint8 [N, H, W, C], and as many held-out images, come to training images;
    draws the nearest."""
    data = config.data
    train, held_out = sources.load(data, data.train_split), sources.load(data, data.eval_split)
    index = np.arange(min(len(samples), len(held_out)))
    others = pipeline.examples(held_out, index)["image"]
    found = memorisation.memorisation(samples, others, train, data.flip, progress=True)
    pictures.save(
        picture, pictures.enlarge(memorisation.picture(samples, train, found.neighbours), 600)
    )
    return {"samples": found.samples._asdict(), "held_out": found.held_out._asdict()}


def surroundings(num: int, reference: references.Reference, replicates: int) -> dict:
    """What figures depend on besides the images that are scored."""
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    found = {"num": num, "diffusion_jax": __version__, "jax": jax.__version__, "devices": devices}
    found |= {
        "reference": reference.statistics.record,
        "reference_count": reference.statistics.count,
    }
    return found | {"replicates": replicates}


def scalars(report: dict) -> dict[str, float]:
    """The report's chief numbers by their names."""
    nested = {"fid": "value", "fid_infinity": "value", "kid": "mean", "inception_score": "mean"}
    found = {name: report[name][inner] for name, inner in nested.items() if name in report}
    for name in ("spatial_fid", "precision", "recall", "density", "coverage"):
        if name in report:
            found[name] = report[name]
    for method in ("bound", "ode"):
        if method in report.get("bits_per_dim", {}):
            found[f"bits_per_dim_{method}"] = report["bits_per_dim"][method]["value"]
    return found


NAMES = {
    "fid": "FID",
    "fid_infinity": "FID, infinitely many",
    "spatial_fid": "spatial FID",
    "kid": "KID",
}
NAMES |= {
    "inception_score": "Inception Score",
    "bits_per_dim_bound": "bits/dim, bound",
    "bits_per_dim_ode": "bits/dim, ODE",
}


def summary(report: dict) -> str:
    """The report in a few lines."""
    protocol = report["protocol"]
    lines = [
        f"{protocol['num']} images against {protocol['reference_count'] or 'an unknown number'}, "
    ]
    lines[0] += f"{protocol['features']['features']} features"
    for name, value in scalars(report).items():
        found, line = report.get(name), f"{NAMES.get(name, name):<22} {value:10.5g}"
        if isinstance(found, dict) and "low" in found:
            line += f"   95 %: {found['low']:.4f} to {found['high']:.4f}"
        if name.startswith("bits") and (
            error := report["bits_per_dim"][name.rpartition("_")[2]]["standard_error"]
        ):
            line += f"   +- {error:.4f}"
        lines.append(line)
    return "\n".join(lines)


def write_report(path: pathlib.Path, report: dict) -> pathlib.Path:
    write_text(path, json.dumps(report, indent=2) + "\n")
    return path
