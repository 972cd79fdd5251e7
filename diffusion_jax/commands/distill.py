"""Distils a run into students of ever fewer steps, or by another objective with a teacher.

python main.py distill --workdir DIR --teacher DIR --to 4 [--from 1024]
python main.py distill --workdir DIR --teacher DIR --objective NAME
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from diffusion_jax.conditioning import guidance_weight
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.build import build
from diffusion_jax.runs.checks import check_diffuses
from diffusion_jax.runs.command_line import Flag, Given, Needs, find
from diffusion_jax.runs.config import Config, use
from diffusion_jax.runs.open import check_same
from diffusion_jax.runs.settings import copy, load, override
from diffusion_jax.runs.workdir import workdir_path

HALVING = "progressive"
FLAGS = {
    "teacher": Flag("", "the workdir of the teacher's run", "the run that is distilled"),
    "to": Flag(0, "the student's steps; each round, DIR/steps_0512 and so on, halves them"),
    "from": Flag(0, "the teacher's steps, --to times a power of two; 0 for the most up to 1024"),
    "objective": Flag(HALVING, "what is learnt; all but progressive are one run, DIR itself"),
}
NEEDS = Needs(own=True)
GUIDANCE = "diffusion.loss.guidance"
MOST_NOISE = 80.0  # sigma / alpha at which grids of consistency distillation end
MOST = 1024  # steps of the teacher where none are asked for


def run(given: Given) -> str:
    """What `main.py distill` does with its flags."""
    flags = given.flags
    teacher = workdir_path(flags["teacher"], "--teacher")
    if not (teacher / "config.json").is_file():
        raise UserError(f"--teacher must be the workdir of a run, but {teacher} holds none")
    theirs = load(teacher / "config.json")
    check_diffuses(theirs, "distill is")
    base = given.config if given.declared else student_of(theirs)
    if flags["objective"] != HALVING:
        if flags["to"] or flags["from"]:
            raise UserError(f"--to and --from are of {HALVING}, not of {flags['objective']}")
        own = base.diffusion.loss
        if not given.declared:
            suit(base, flags["objective"])
        same = given.declared and own.entry == flags["objective"]
        objective = own if same else use(flags["objective"])
        config = one_round(base, str(teacher), objective, given.settings)
        if not given.declared:
            in_stages(config, given.settings)
        if not build(config).objective.teacher:
            raise UserError(f"--objective={flags['objective']} learns from no teacher")
        find("train").run(Given(given.workdir, config, {}))
        return f"distilled: {given.workdir}"
    counts = rounds(flags["to"], flags["from"], theirs)
    return distill(base, given.workdir, str(teacher), counts, given.settings)


def distill(
    base: Config, workdir: pathlib.Path, teacher: str, counts: list[int], settings: Mapping
) -> str:
    """Trains a student of each number of steps, workdir/steps_0512 and so on, each with the one
    before as its teacher, from where the last call ended; returns what is said at the end. The
    first teacher alone is guided by diffusion.loss.guidance: the students have learnt it.

    Each round is a run like any other. A line says which one begins, or is complete already."""
    folders = [workdir / f"steps_{count:04d}" for count in counts]
    later = {path: text for path, text in settings.items() if path != GUIDANCE}
    said = [settings, *[later] * (len(counts) - 1)]
    configs = [
        one_round(base, own, use(HALVING, steps=count), told, count)
        for own, count, told in zip([teacher, *map(str, folders[:-1])], counts, said, strict=True)
    ]
    build(configs[-1])  # what cannot be distilled to the end is not begun
    for number, (folder, config) in enumerate(zip(folders, configs, strict=True), 1):
        done = complete(folder, config)
        how = "complete" if done else f"from {config.training.init}"
        steps = counts[number - 1]
        print(f"round {number} of {len(counts)}: {steps} steps, {folder}, {how}", flush=True)
        if not done:
            find("train").run(Given(folder, config, {}))
    return f"distilled: {folders[-1]}; python main.py sample --workdir {folders[-1]}"


def rounds(to: int, start: int, teacher: Config) -> list[int]:
    """The steps of each round's student, the half of those of its teacher; UserError where `start`
    is not `to` times a power of two."""
    if to < 1:
        raise UserError("--to is missing: the student's steps, as in --to 4" if not to else
                        f"--to must be at least 1 step, not {to}")  # fmt: skip
    table = build(teacher).schedule.num_steps
    if table is not None and to > table:
        raise UserError(f"--to={to} is more than the {table} steps of the teacher's table")
    most = MOST if table is None else min(MOST, 2 * table)
    counts = [to]
    while 4 * counts[-1] <= (start or most):
        counts.append(2 * counts[-1])
    if start and 2 * counts[-1] != start:
        near = 2 * counts[-1]
        below = f"; the nearest are {near} and {2 * near}" if start > near else f", as {near}"
        raise UserError(f"--from must be --to={to} times 2, 4, 8 and so on{below}, not {start}")
    if table is not None and counts[-1] > table:
        raise UserError(
            f"--from={start} is more than twice the {table} steps of the teacher's table"
        )
    return counts[::-1]


def student_of(theirs: Config) -> Config:
    """The config of a teacher's student, without an objective: its data, model, schedule and
    prediction, and how it was trained, but without dropout and at a learning rate that falls
    linearly to 0, without warm-up, as the paper's students are."""
    config = copy(theirs)
    if "dropout" in config.model.values():
        config.model.dropout = 0.0
    config.diffusion.weighting, config.diffusion.timesteps = "none", "uniform"
    training = config.training
    training.decay, training.warmup_steps = "linear", 0
    training.freeze, config.evaluation.bits_per_dim = "", 0
    return config


def suit(config: Config, objective: str) -> None:
    """Gives a consistency student its papers' distribution of t, and one step of its own sampler
    from the noisiest level that it is trained at."""
    times = {
        "consistency_distillation": use("karras"),
        "easy_consistency": use("lognormal", mean=-1.1, std=2.0),
        "continuous_consistency": use("lognormal", mean=-1.0, std=1.4),
    }
    if objective not in times:
        return
    drawn, schedule = config.sampling, build(config).schedule
    drawn.sampler, drawn.grid, drawn.steps = "consistency", "trailing", "1"
    drawn.quantize, drawn.tolerance, drawn.half_until = False, 0.0, None
    drawn.guidance, drawn.guide, drawn.negative = 0.0, "classifier_free", ""
    if objective == "consistency_distillation":
        t = min(float(schedule.inverse(-2.0 * math.log(MOST_NOISE))), schedule.t_max)
        whole = schedule.num_steps is not None
        drawn.grid, drawn.steps = "explicit", str(round(t)) if whole else f"{t:.6g}"
    config.diffusion.timesteps = times[objective]


def in_stages(config: Config, settings: Mapping[str, str]) -> None:
    """Gives an objective of stages, or of a warm-up, such as the number of steps holds."""
    steps, loss = config.training.num_steps, config.diffusion.loss
    for entry, name, share in (
        ("easy_consistency", "stage_steps", 8),
        ("continuous_consistency", "warmup", 10),
    ):
        if loss.entry == entry and f"diffusion.loss.{name}" not in settings:
            setattr(loss, name, max(1, steps // share))


def one_round(
    base: Config, teacher: str, objective: Any, settings: Mapping[str, str], steps: int = 0
) -> Config:
    """The config of a round; steps: those that it draws in, 0 for the base's sampling."""
    config = copy(base)
    config.diffusion.loss = objective
    config.training.init, config.training.init_sha256 = teacher, ""
    if steps:
        drawn = config.sampling
        drawn.sampler, drawn.grid, drawn.steps = "ddim", "trailing", str(steps)
        drawn.quantize, drawn.tolerance, drawn.half_until = False, 0.0, None
        if all(one.entry != guidance_weight.NAME for one in config.conditioning):
            drawn.guidance, drawn.guide, drawn.negative = 0.0, "classifier_free", ""
    override(config, dict(settings))
    return config


def complete(folder: pathlib.Path, config: Config) -> bool:
    """Whether a round has taken its last step; UserError where the folder holds another one."""
    if not (folder / "config.json").is_file():
        return False
    check_same(copy(config), folder, f"{folder} goes on with its own settings")
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return any(name.isdigit() and int(name) >= config.training.num_steps for name in names)
