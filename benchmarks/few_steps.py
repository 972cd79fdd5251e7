"""How good students that draw digits in a few steps are, beside their teacher.

Command:   python benchmarks/few_steps.py --teacher runs/digits runs/consistency:1,2 \\
               'three seeds=runs/student0+runs/student1+runs/student2:1' [--num 1000]
               [--seeds 0,1,2] [--cache FOLDER] [--out FILE.json]
Hardware:  any; minutes on one core, most of them the compiler's and the teacher's 100 and 64 steps,
           which are kept in --cache

Prints, for each student and number of steps: how many of its samples an SVM that was trained on the
real digits reads as asked; FID by digits features, and its ratio to that of the teacher's own
sampling; what DDIM of the teacher on the trailing grid reaches in as many steps; and, for students
that began with a teacher, the RMSE to the teacher's 64-step DDIM picture from the same noise, x0 in
[-1, 1]. The last stands beside that of two noises of the same label, so that a student whose
pictures are good and all alike is found out. Each figure is the mean over the seeds with a 95 %
interval by Student's t. A student is a run, or several, joined by +, of which run i draws with the
i-th seed; without numbers of steps it draws as its config says."""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from digits_quality import classifier, flat  # noqa: E402

from diffusion_jax import samplers  # noqa: E402
from diffusion_jax.core.errors import UserError  # noqa: E402
from diffusion_jax.core.files import write_text  # noqa: E402
from diffusion_jax.core.noise import fold_in, initial_noise  # noqa: E402
from diffusion_jax.core.types import Level  # noqa: E402
from diffusion_jax.data.sources import digits  # noqa: E402
from diffusion_jax.devices.parallel import equal_batches, map_examples  # noqa: E402
from diffusion_jax.evaluation import features, frechet  # noqa: E402
from diffusion_jax.evaluation.extract import key  # noqa: E402
from diffusion_jax.interop.files import fingerprint  # noqa: E402
from diffusion_jax.runs.build import build, make_grid  # noqa: E402
from diffusion_jax.runs.config import Config, Sampling  # noqa: E402
from diffusion_jax.runs.draw import chain_of, labels, make_examples  # noqa: E402
from diffusion_jax.runs.folders import decoded  # noqa: E402
from diffusion_jax.runs.open import restore_params  # noqa: E402
from diffusion_jax.runs.score import how_sampled  # noqa: E402
from diffusion_jax.runs.settings import as_values, copy, load, override  # noqa: E402

LONGEST = 128  # levels of a grid: one program draws them all
BATCH = 500
REFERENCE = 64  # steps of the picture that students are held against


class Drawer:
    """A run that draws with any number of steps, by one program a sampler."""

    def __init__(self, workdir: pathlib.Path, settings: dict[str, str] | None = None):
        if not (workdir / "config.json").is_file():
            raise UserError(f"{workdir} holds no run")
        self.config: Config = load(workdir / "config.json")
        override(self.config, settings or {})
        self.parts = build(self.config)
        self.params, self.step = restore_params(self.config, self.parts, workdir, ema=True)
        self.fingerprint = fingerprint(self.params)

    def settings(self, steps: str, seed: int) -> Config:
        config = copy(self.config)
        config.sampling.steps, config.sampling.seed = steps or config.sampling.steps, seed
        return config

    @functools.cached_property
    def program(self) -> Callable:
        """draw((params, grid [LONGEST], last), examples) -> x0."""
        config, parts = self.config, self.parts
        shape = tuple(parts.codec.shape)

        def draw(whole, examples):
            params, grid, last = whole
            keys, denoiser, sampler = chain_of(config, parts, (params, None), examples)
            noise = initial_noise(fold_in(keys, 0), shape, Level(*(a[0] for a in grid)))
            chain = (sampler, denoiser, fold_in(keys, 1))
            carry = samplers.begin(*chain, noise, grid)
            carry = samplers.advance(*chain, carry, grid, 0, last)
            return samplers.look(samplers.final(sampler, denoiser), carry, grid, last)

        return map_examples(draw)

    def draw(self, steps: str, seed: int, num: int) -> np.ndarray:
        """x0 of samples 0 ... num - 1, as of `main.py sample`."""
        config = self.settings(steps, seed)
        grid = make_grid(config, self.parts.schedule)
        last = len(grid.t) - 1
        filled = Level(*(np.pad(np.asarray(a, float), (0, LONGEST - 1 - last), "edge")
                         for a in grid))  # fmt: skip
        examples = make_examples(config, self.parts)
        whole, drawn = (self.params, filled, np.int32(last)), []
        for index, count in equal_batches(num, min(BATCH, num)):
            drawn.append(np.asarray(self.program(whole, examples(index)))[:count])
        return np.concatenate(drawn)


class Judge:
    """What is measured of samples, kept in a folder by what they depend on."""

    def __init__(self, folder: pathlib.Path, num: int):
        folder.mkdir(parents=True, exist_ok=True)
        train = digits("train")
        self.folder, self.num = folder, num
        self.svm, self.features = classifier(train.images, train.labels), features.load("digits")
        self.real = frechet.statistics([self.features.apply(train.images)["features"]])

    def samples(self, drawer: Drawer, steps: str, seed: int) -> np.ndarray:
        """x0 [num, ...]."""
        config = drawer.settings(steps, seed)
        values, usual = as_values(config.sampling), as_values(Sampling())
        asked = {name: value for name, value in values.items() if value != usual[name]}
        how = {"network": drawer.fingerprint, "sampling": how_sampled(asked)}
        path = self.folder / f"{key(how | {'num': self.num})}.npy"
        if not path.is_file():
            partial = path.with_suffix(f".{drawer.step}.partial.npy")
            np.save(partial, drawer.draw(steps, seed, self.num))
            partial.replace(path)
        return np.load(path)

    def __call__(self, drawer: Drawer, steps: str, seed: int) -> dict[str, float]:
        images = decoded(drawer.parts, self.samples(drawer, steps, seed))
        asked = labels(drawer.config, np.arange(self.num))
        found = frechet.statistics([self.features.apply(images)["features"]])
        return {
            "recognised": float(self.svm.score(flat(images), asked)),
            "fid": frechet.frechet_distance(found, self.real),
        }


class Student(NamedTuple):
    name: str
    workdirs: list[pathlib.Path]
    steps: list[str]  # "" for the config's


def student(text: str) -> Student:
    name, equals, rest = text.rpartition("=")
    folders, _, steps = rest.partition(":")
    workdirs = [pathlib.Path(one).expanduser() for one in folders.split("+")]
    return Student(name if equals else workdirs[0].name, workdirs, steps.split(","))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half of the 95 % interval by Student's t)."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), float("nan")
    t = scipy.stats.t.ppf(0.975, count - 1)
    return float(np.mean(values)), float(t * np.std(values, ddof=1) / np.sqrt(count))


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(float) - b) ** 2)))


def shown(values: Sequence[float] | None, form: str, times: float = 1.0) -> str:
    if values is None:
        return "-"
    mean, half = interval(values)
    return f"{mean * times:{form}}" + ("" if np.isnan(half) else f" ± {half * times:{form}}")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | steps | recognised as asked, % | FID | FID / teacher's "
             "| RMSE to the teacher's 64 steps |", "|---" * 6 + "|"]  # fmt: skip
    for row in rows:
        cells = [row["name"], row["steps"], shown(row["recognised"], ".1f", 100.0),
                 shown(row["fid"], ".2f"), shown(row["ratio"], ".2f"),
                 shown(row["rmse"], ".3f")]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the table."""
    judge = Judge(options.cache or options.teacher / "few_steps", options.num)
    own = Drawer(options.teacher)
    if own.config.data.source.entry != "digits":
        raise UserError(f"{options.teacher} is no run of the digits, which the judges are of")
    ddim = Drawer(options.teacher, {"sampling.sampler": "ddim", "sampling.grid": "trailing"})
    seeds, rows, reference = options.seeds, [], [judge(own, "", seed) for seed in options.seeds]

    def add(name: str, steps: str, drawers: list[Drawer], begun: bool) -> None:
        found = [judge(one, steps, seed) for one, seed in zip(drawers, seeds, strict=True)]
        row: dict[str, Any] = {"name": name}
        row["steps"] = steps or drawers[0].config.sampling.steps
        row |= {what: [one[what] for one in found] for what in ("recognised", "fid")}
        row["ratio"] = [
            one["fid"] / there["fid"] for one, there in zip(found, reference, strict=True)
        ]
        row["rmse"] = None
        if begun:
            row["rmse"] = [
                rmse(judge.samples(one, steps, seed), judge.samples(ddim, str(REFERENCE), seed))
                for one, seed in zip(drawers, seeds, strict=True)
            ]
        rows.append(row)
        print(table(rows[-1:]).splitlines()[-1], flush=True)

    sampling = own.config.sampling
    add(f"teacher, {sampling.sampler.entry}", "", [own] * len(seeds), False)
    add("teacher, ddim", str(REFERENCE), [ddim] * len(seeds), False)
    if len(seeds) > 1:
        pictures = [judge.samples(ddim, str(REFERENCE), seed) for seed in seeds]
        others = [rmse(a, b) for a, b in zip(pictures, [*pictures[1:], pictures[0]], strict=True)]
        rows[-1] |= {"name": "teacher, ddim; RMSE of another noise", "rmse": others}
    done: set[str] = set()
    for one in options.students:
        drawers = [Drawer(workdir) for workdir in one.workdirs]
        if len(drawers) not in (1, len(seeds)):
            raise UserError(f"{one.name}: {len(drawers)} runs for {len(seeds)} seeds")
        drawers = drawers if len(drawers) > 1 else drawers * len(seeds)
        for steps in one.steps:
            config = drawers[0].settings(steps, 0)
            levels = str(len(make_grid(config, drawers[0].parts.schedule).t))
            if levels not in done:
                add("teacher, ddim", levels, [ddim] * len(seeds), True)
                done.add(levels)
            add(one.name, steps, drawers, bool(config.training.init))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="How good few-step students of digits are.")
    parser.add_argument("students", type=student, nargs="*", help="[NAME=]DIR[+DIR...][:STEPS,...]")
    parser.add_argument("--teacher", type=pathlib.Path, default=pathlib.Path("runs/digits"))
    parser.add_argument("--num", type=int, default=1000)
    numbers = lambda text: [int(word) for word in text.split(",")]
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--cache", type=pathlib.Path, help="TEACHER/few_steps by default")
    parser.add_argument("--out", type=pathlib.Path, help="a JSON file of all figures")
    options = parser.parse_args()
    try:
        rows = measured(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n" + table(rows))
    if options.out:
        write_text(options.out, json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
