"""Measures quality against network calls, of several runs, samplers and numbers of steps.

    python main.py compare --workdir DIR,DIR [--samplers own,ddim,dpmpp_2m:logsnr] [--steps 1,2,4,8]
    python main.py compare --workdir DIR --num 2000 --out FOLDER

A line of the plot is a run with a sampler. `own` is the run's own sampler with its own grid.
"""

import csv
import io
import json
import pathlib

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.devices.processes import process
from diffusion_jax.evaluation import features, references
from diffusion_jax.runs import plots
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.comparison import OWN, Point, measure, points_of
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.score import check_images, check_width, check_writable, run_data
from diffusion_jax.runs.settings import load, override

FLAGS = {
    "samplers": Flag(OWN, "samplers, as own,ddim,dpmpp_2m:logsnr, a grid's name behind a colon"),
    "steps": Flag("1,2,4,8", "numbers of steps, as levels of the grid"),
    "num": Flag(2000, "samples of each"),
    "against": Flag("", "images to judge them by; empty for the first run's training split"),
    "out": Flag("", "the folder; empty for compare/ in the first run's workdir"),
}
NEEDS = Needs(chain=True)


def run(given: Given) -> str:
    """What `main.py compare` does with its flags."""
    flags = given.flags
    if process()[1] > 1:
        raise UserError("compare is of one process")
    workdirs = given.chain or (given.workdir,)
    samplers = [word.strip() for word in flags["samplers"].split(",") if word.strip()]
    if not samplers:
        raise UserError(f"--samplers names none; as in --samplers {OWN},ddim")
    if flags["num"] < 10:
        raise UserError(f"--num must be at least 10 samples, not {flags['num']}")
    out = pathlib.Path(flags["out"]).expanduser() if flags["out"] else workdirs[0] / "compare"
    found = compare(
        workdirs, configs_of(given), samplers, steps_of(flags["steps"]), flags["num"],
        flags["against"], out,
    )  # fmt: skip
    return f"comparison: {found}"


def configs_of(given: Given) -> list[Config]:
    """The runs' configs with the command line's settings."""
    if not given.chain:
        return [given.config]
    configs = []
    for workdir in given.chain:
        if not (workdir / "config.json").is_file():
            raise UserError(f"{workdir} holds no run")
        configs.append(load(workdir / "config.json"))
    if given.config != configs[-1]:
        raise UserError("several runs take no --config: each has its own")
    for config in configs:
        override(config, dict(given.settings))
    return configs


def steps_of(text: str) -> list[int]:
    """Numbers of steps; UserError."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise UserError(f"--steps must be whole numbers above 0, as in 1,2,4,8, not {text!r}")
    return sorted({int(word) for word in words})


def compare(
    workdirs: tuple[pathlib.Path, ...],
    configs: list[Config],
    samplers: list[str],
    steps: list[int],
    num: int,
    against: str,
    out: pathlib.Path,
) -> pathlib.Path:
    """Measures every run with every sampler and number of steps; prints the table, writes
    compare.json, after every row, compare.csv and compare.png into the folder `out`; returns it.

    What compare.json holds of the same run, step and settings is not measured again. Features of
    samples lie in each run's `evaluations`, as those of `evaluate`."""
    first = configs[0]
    for workdir, config in zip(workdirs, configs, strict=True):
        check_writable(workdir / "evaluations")
        mine, others = (tuple(one.data.shape) for one in (first, config))
        if mine != others or first.data.source.entry != config.data.source.entry:
            raise UserError(
                f"{workdir} draws {others} of {config.data.source.entry} and {workdirs[0]} "
                f"{mine} of {first.data.source.entry}, which are not compared"
            )
    check_writable(out)
    points: list[Point] = []
    for name, workdir, config in zip(names(workdirs), workdirs, configs, strict=True):
        points += points_of(name, workdir, config, samplers, steps)
    check_images(first, points[0].run.parts)
    settings = first.evaluation
    function = features.load(settings.features, settings.weights)
    reference = references.reference(
        against or first.data.train_split, run_data(first), function, settings.batch_size
    )
    check_width(function, tuple(first.data.shape), reference)
    path = make_folder(out) / "compare.json"
    known, rows = known_rows(path), []
    for point in points:
        for name in ("batch_size", "replicates", "subsets"):
            setattr(point.config.evaluation, name, getattr(settings, name))
        rows.append(measure(point, function, reference, num, known))
        # what is known and comes later stays known where this is stopped
        later = [row for row in known.values() if row["key"] not in {r["key"] for r in rows}]
        record = {"num": num, "features": function.record,
                  "reference": reference.statistics.record}  # fmt: skip
        write_text(path, json.dumps(record | {"rows": rows, "known": later}, indent=2) + "\n")
        print(line_of(rows[-1]) if len(rows) > 1 else f"{HEAD}\n{line_of(rows[-1])}", flush=True)
    write_text(out / "compare.csv", as_csv(rows))
    plots.comparison(out / "compare.png", rows, function.name)
    return out


def names(workdirs: tuple[pathlib.Path, ...]) -> list[str]:
    """What runs are called: their folders, with as much of the path as tells them apart."""
    short = [workdir.name for workdir in workdirs]
    return short if len(set(short)) == len(short) else [str(workdir) for workdir in workdirs]


def known_rows(path: pathlib.Path) -> dict[str, dict]:
    """Rows of an earlier call, by their key."""
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {row["key"]: row for row in (*held["known"], *held["rows"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no comparison; remove it or choose another --out") from None


HEAD = (
    f"{'run':<20} {'sampler':<16} {'grid':<10} {'steps':>6} {'calls':>7} "
    f"{'FID':>9}   {'95 %':<19}  recognised"
)


def line_of(row: dict) -> str:
    """A row as a line of the table."""
    fid, recognised = row["fid"], row.get("recognised")
    steps = row["steps"] if len(row["steps"]) <= 6 else f"{row['steps'].count(',') + 1}"
    line = f"{row['run'][-20:]:<20} {row['sampler'][:16]:<16} {row['grid'][:10]:<10} {steps:>6} "
    line += f"{row['calls']:>7.4g} {fid['value']:>9.4g}   "
    line += f"{fid['low']:.4g} to {fid['high']:.4g}".ljust(21) if "low" in fid else " " * 21
    return (line + (f"{recognised['value']:.1%}" if recognised else "")).rstrip()


def as_csv(rows: list[dict]) -> str:
    """The rows flat, one a line; nested values as fid.low."""
    flat = []
    for row in rows:
        flat.append({})
        for name, value in row.items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            flat[-1] |= {f"{name}.{word}" if word else name: one for word, one in inner}
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
