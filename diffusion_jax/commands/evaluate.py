"""Scores a run's samples, or any two sets of images: FID and its kin, bits/dim, memorisation.

    python main.py evaluate --workdir DIR [--against SET]
    python main.py evaluate --workdir DIR,DIR [--against SET]
    python main.py evaluate --workdir DIR --images SET --against SET

A SET is a folder, an .npz, an .npy or a split of the run's data.
"""

import json
import pathlib
import signal
from collections.abc import Sequence

import jax
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.core.version import __version__
from diffusion_jax.devices.processes import primary, process, start, together, wait_for_all
from diffusion_jax.evaluation import features, references
from diffusion_jax.evaluation.extract import Extracted, extract, key
from diffusion_jax.evaluation.scores import scores
from diffusion_jax.interop.files import fingerprint
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import cascade, folders
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.open import manner, open_run
from diffusion_jax.runs.score import (
    bits_per_dim,
    check_measures,
    check_width,
    check_writable,
    floor,
    how_sampled,
    identity,
    memorised,
    run_data,
    sampled,
    scalars,
)
from diffusion_jax.runs.settings import check, copy
from diffusion_jax.training.events import Events

FLAGS = {
    "images": Flag("", "images to be judged, in place of the run's samples"),
    "against": Flag("", "images to judge them by"),
    "stage": Flag((), "a setting of one run of a chain, as 1:sampling.steps=50; again for others"),
}
NEEDS = Needs(alone=("images",), chain=True)
ONLY = "evaluate takes only config.sampling, .evaluation and .likelihood settings"
GRID = 100  # samples in the picture


def run(given: Given) -> str:
    """What `main.py evaluate` does with its flags: `evaluate` or, with --images, `compare`."""
    start()
    with together():
        if process()[1] > 1:
            # JAX's own handler waits to be asked; features go on anyway
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        path = chosen(given)
        wait_for_all("evaluated")
        return str(path)


def chosen(given: Given) -> pathlib.Path:
    images, against = given.flags["images"], given.flags["against"]
    if images and not against:
        raise UserError(
            "--against is missing: the folder, file or split that the images are compared with"
        )
    if given.flags["stage"] and not given.chain:
        raise UserError("--stage is of a chain of runs, as in --workdir runs/base,runs/sr")
    if given.chain and images:
        raise UserError("--images are judged without a chain of runs; --workdir must be one folder")
    try:
        if given.chain:
            return evaluate_chain(given, against)
        if not images and given.config.evaluation.ema_lengths:
            return sweep(given.config, given.workdir, against)
        if not images:
            return evaluate(given.config, given.workdir, against)
        return compare(given.config, given.workdir, images, against, given.declared)
    except OSError as error:  # a full disk, a folder that is not ours; what is there stays
        raise UserError(
            f"{error.filename or given.workdir} cannot be read or written: "
            f"{error.strerror or error}"
        ) from error


def evaluate_chain(given: Given, against: str) -> pathlib.Path:
    """`evaluate` of a chain's samples, in the last run's workdir."""
    configs = cascade.given_configs(given)
    if configs[-1].evaluation.ema_lengths:
        raise UserError("config.evaluation.ema_lengths are of one run, not of a chain")
    configs[-1].evaluation.bits_per_dim = 0  # a chain has no density
    stages = cascade.open_chain(given.chain, configs, ONLY, configs[-1].evaluation.num)
    return evaluate(configs[-1], given.workdir, against, stages)


def evaluate(
    config: Config, workdir: pathlib.Path, against: str = "", stages: Sequence[cascade.Stage] = ()
) -> pathlib.Path:
    """Scores evaluation.num samples of a run; writes workdir/evaluations/<how>/report-<num>.json
    and pictures; its path.

    against: a folder, an .npz or .npy of images, a file of statistics, or a split; empty for the
    training split. Samples and references whose features were made before, by this command or one
    that was stopped, are not made again. stages: of a chain, whose last run this is; its samples
    are scored, and bits/dim left out."""
    settings, data = config.evaluation, config.data
    run = stages[-1].run if stages else open_run(config, workdir, ONLY)
    check_measures(config, run.parts)
    check_writable(workdir / "evaluations")
    function = features.load(settings.features, settings.weights)
    reference = references.reference(
        against or data.train_split, run_data(config), function, settings.batch_size
    )
    check_width(function, tuple(data.shape), reference)
    protocol = identity(config, run, function)
    if stages:
        protocol |= {"chain": chain_protocol(stages)}
    named = cascade.manner_of(stages) if stages else manner(config, run.parts, run.step)
    how = f"{named}-{function.name}-{key(protocol)}"
    shown = max(GRID, settings.memorised)
    extracted = Extracted(workdir / "evaluations" / how, protocol, tuple(data.shape), shown)
    if stages:
        samples = cascade.samples(stages)
    else:
        generate = make_generate(config, run.parts, weak=run.weak, decoded=True)
        samples = sampled(generate, run.params)
    extract(extracted, function, samples, settings.num, settings.batch_size, "samples")

    # by all processes, as the samples
    lowest = {}
    if run.parts.codec.moments:
        own = (config, run.parts, function, reference, workdir / "evaluations")
        lowest = floor(*own, against if against == data.eval_split else data.train_split)
    bits = bits_per_dim(config, run.parts, run.params) if settings.bits_per_dim else {}
    if not primary():
        return extracted.folder
    report = scores(extracted, settings.num, reference, settings.replicates, settings.subsets)
    report |= {"bits_per_dim": bits} if bits else {}
    report |= {"floor": lowest} if lowest else {}
    images, folder = extracted.images.array(min(shown, settings.num)), extracted.folder
    picture = folders.preview(config, run.parts, np.asarray(images[:GRID]))
    if picture is not None:
        pictures.save(folder / "samples.png", picture)
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


def chain_protocol(stages: Sequence[cascade.Stage]) -> list[dict]:
    """What a chain's samples depend on, but for the last run's."""
    return [
        {name: value for name, value in record.items() if name != "run"}
        | {"network": fingerprint(stage.run.params), "sampling": how_sampled(record["sampling"])}
        for stage, record in zip(stages, cascade.records(stages), strict=True)
    ]


def sweep(config: Config, workdir: pathlib.Path, against: str = "") -> pathlib.Path:
    """`evaluate` at each of evaluation.ema_lengths; writes workdir/evaluations/lengths-<num>.json,
    {length: figures}; its path."""
    found = {}
    for length in config.evaluation.ema_lengths:
        own = copy(config)
        own.sampling.ema_length = length
        path = evaluate(own, workdir, against)
        if primary():
            found[f"{length:g}"] = scalars(json.loads(path.read_text()))
    for length, figures in found.items():
        values = ", ".join(
            f"{NAMES.get(name, name)} {value:.5g}" for name, value in figures.items()
        )
        print(f"length {length:<6} {values}")
    path = workdir / "evaluations" / f"lengths-{config.evaluation.num}.json"
    return write_report(path, found) if primary() else path


def compare(
    config: Config, workdir: pathlib.Path, images: str, against: str, declared: bool = True
) -> pathlib.Path:
    """Scores one set of images against another, whoever made them; writes a report in
    workdir/evaluations, returns its path.

    images, against: as in `evaluate`. A folder's images are brought to data.shape; where it is
    empty they stay as they are, and no splits can be named."""
    check(config)
    settings, data = config.evaluation, run_data(config, declared)
    function = features.load(settings.features, settings.weights)
    check_writable(workdir / "evaluations")
    samples = references.image_set(images, data)
    reference = references.reference(against, data, function, settings.batch_size)
    extracted, count = references.extracted(samples, function), len(samples.source)
    named = f"{function.name} of {images}"
    extract(extracted, function, samples.images, count, settings.batch_size, named)
    if not primary():
        return extracted.folder
    report = scores(extracted, count, reference, settings.replicates, settings.subsets)
    report["protocol"] = {"images": samples.record, "features": function.record}
    report["protocol"] |= surroundings(count, reference, settings.replicates)
    print(summary(report))
    name = f"{extracted.folder.name}-against-{key(report['protocol']['reference'])}.json"
    return write_report(make_folder(workdir / "evaluations") / name, report)


def surroundings(num: int, reference: references.Reference, replicates: int) -> dict:
    """What figures depend on besides the images that are scored."""
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    found = {"num": num, "diffusion_jax": __version__, "jax": jax.__version__, "devices": devices}
    found |= {
        "reference": reference.statistics.record,
        "reference_count": reference.statistics.count,
    }
    return found | {"replicates": replicates}


NAMES = {
    "fid": "FID",
    "fid_infinity": "FID, infinitely many",
    "fid_floor": "FID of the codec alone",
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
