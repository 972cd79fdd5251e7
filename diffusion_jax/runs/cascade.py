"""Chains of runs: each draws at a higher resolution, told what the one before it drew.

Ho et al. 2022, "Cascaded Diffusion Models for High Fidelity Image Generation"."""

import functools
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.conditioning import low_resolution
from diffusion_jax.core.errors import UserError
from diffusion_jax.devices.parallel import Started
from diffusion_jax.runs import draw, folders
from diffusion_jax.runs.build import raw_source
from diffusion_jax.runs.checks import check_diffuses
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import TrainedRun, manner, open_run
from diffusion_jax.runs.prompts import TEXT, Prompts
from diffusion_jax.runs.settings import as_values, load, override

LOW = "low"  # the entry of CONDITIONERS that a stage is told the one before it by
SHARED = ("num", "batch_size", "seed", "label", "prompts", "negative")  # of config.sampling
ASKED = ("label", TEXT)  # conditions that all stages may be told
OWN = (low_resolution.NAME, low_resolution.LEVEL, "augmentation")  # that a later stage has itself


class Stage(NamedTuple):
    """A run of a chain."""

    workdir: pathlib.Path
    config: Config
    run: TrainedRun

    def tells(self, name: str) -> bool:
        """Whether its network is told a condition."""
        return name in self.run.parts.conditioner.kinds


def configs_of(
    workdirs: Sequence[pathlib.Path],
    settings: Mapping[str, str] | None = None,
    of_stages: Sequence[str] = (),
) -> list[Config]:
    """The configs of a chain's runs with settings of the command line, path -> text.

    SHARED ones are the first run's; all others are the last one's. of_stages: "1:PATH=TEXT", a
    setting of the first run, and so on."""
    configs = [load_run(workdir) for workdir in workdirs]
    own: list[dict[str, str]] = [{} for _ in workdirs]
    shared = {f"sampling.{name}" for name in SHARED}
    for path, text in (settings or {}).items():
        own[0 if path in shared else -1][path] = text
    for word in of_stages:
        number, colon, rest = word.partition(":")
        path, equals, text = rest.removeprefix("config.").partition("=")
        if not (colon and equals and number.isdecimal() and 1 <= int(number) <= len(configs)):
            raise UserError(
                f"--stage={word} is no setting of a stage, 1 to {len(configs)}, as in "
                "--stage 1:sampling.steps=50"
            )
        if int(number) > 1 and path in shared:
            raise UserError(f"--stage={word}: {path} is that of all stages, the first one's")
        own[int(number) - 1][path] = text
    for config, changes in zip(configs, own, strict=True):
        override(config, changes)
    return configs


def load_run(workdir: pathlib.Path) -> Config:
    """The config of a run; UserError where the folder holds none."""
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} holds no run, of which a chain is made")
    return load(workdir / "config.json")


def given_configs(given: Given) -> list[Config]:
    """The configs that a command's flags ask a chain for."""
    if given.config != load_run(given.workdir):
        raise UserError("a chain of runs takes no --config: each run has its own")
    return configs_of(given.chain, given.settings, given.flags["stage"])


def open_chain(
    workdirs: Sequence[pathlib.Path], configs: Sequence[Config], only: str, count: int = 0
) -> list[Stage]:
    """The runs of a chain, ready to draw `count` samples, sampling.num of the first where that is
    0. The later configs are changed to ask for what the first does.

    Raises UserError, in one line, for runs that are no chain."""
    for before, one, workdir, earlier in zip(
        configs, configs[1:], workdirs[1:], workdirs, strict=False
    ):
        check_link(earlier, before, workdir, one)
    first = Stage(workdirs[0], configs[0], open_run(configs[0], workdirs[0], only))
    stages, asked = [first], captions(first, count or configs[0].sampling.num)
    for number, (workdir, config) in enumerate(zip(workdirs, configs, strict=True)):
        if number:
            share(config, first, number, asked)
            stages.append(Stage(workdir, config, open_run(config, workdir, only)))
            check_told(first, stages[-1])
    return stages


def check_link(earlier: pathlib.Path, before: Config, workdir: pathlib.Path, one: Config) -> None:
    """Raises UserError where a run cannot be told what the one before it draws."""
    check_diffuses(before, "chains are")
    if LOW not in [condition.entry for condition in one.conditioning]:
        raise UserError(
            f"{workdir} is told no image of low resolution, as by config.conditioning=low, so it "
            f"cannot follow {earlier}"
        )
    drawn, shape = tuple(before.data.shape), tuple(one.data.shape)
    factor = one.conditioning.low.factor
    wanted = tuple(side // factor for side in shape[:2])
    if drawn[:2] != wanted:
        raise UserError(
            f"{workdir} draws {size(shape)} of {size(wanted)}, but {earlier} draws {size(drawn)}"
        )
    if drawn[2:] != shape[2:]:
        raise UserError(
            f"{earlier} draws images of {drawn[2]} channels and {workdir} of {shape[2]}"
        )
    between = [draw_range(config) for config in (before, one)]
    if between[0] != between[1]:
        raise UserError(f"{earlier} and {workdir} have images of other ranges: {between}")
    told = [draw.classes(config) for config in (before, one)]
    if all(told) and told[0] != told[1]:
        raise UserError(f"{earlier} is told {told[0]} labels and {workdir} {told[1]}")


def size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]}"


def draw_range(config: Config) -> tuple[float, float] | None:
    return folders.declared(config).range


def check_told(first: Stage, stage: Stage) -> None:
    """Raises UserError where a stage is told what the first one does not ask for."""
    for name in stage.run.parts.conditioner.kinds:
        if name in ASKED and not first.tells(name):
            raise UserError(
                f"{stage.workdir} is told a {name}, which {first.workdir} is not: they would draw "
                "different things"
            )
        if name not in (*ASKED, *OWN):
            raise UserError(
                f"{stage.workdir} is told {name!r}; the later runs of a chain are told a label, a "
                "text and the image before"
            )


def captions(first: Stage, count: int) -> tuple[str, ...]:
    """The texts that all stages are asked for; none where the first is told none."""
    config, parts = first.config, first.run.parts
    if TEXT not in parts.conditioner.kinds or parts.conditioner.prepare is None:
        return ()
    if config.sampling.prompts:
        return tuple(config.sampling.prompts)
    held_out = len(raw_source(config, config.data.eval_split))
    return tuple(draw.captions(config, parts, min(count, held_out)))


def stage_seed(seed: int, number: int) -> int:
    """The seed of stage number 0, 1 ... of a chain: others than the first's, so that no stage draws
    the noise that another one drew."""
    return seed if number == 0 else zlib.crc32(f"stage {number} of seed {seed}".encode())


def share(config: Config, first: Stage, number: int, asked: tuple[str, ...]) -> None:
    """Makes a later run's config ask for what the first one does."""
    sampling, shared = config.sampling, first.config.sampling
    conditions = {one.entry for one in config.conditioning}
    sampling.num, sampling.batch_size = shared.num, shared.batch_size
    sampling.seed = stage_seed(shared.seed, number)
    sampling.label = shared.label if "label" in conditions else -1
    sampling.prompts = asked if conditions & {"words", "text"} else ()
    sampling.negative = shared.negative if sampling.prompts and sampling.guidance else ""


def stage_generate(stages: Sequence[Stage], number: int, before: Any) -> Started:
    """`draw.make_generate` of a stage. before: (index [n]) -> what the stage before drew of these
    numbers, uint8 [n, h, w, C]; None for the first."""
    stage, first = stages[number], stages[0]
    given: dict[str, Callable] = {}
    if number:
        given[low_resolution.NAME] = before
        if stage.tells("label"):
            config, parts = first.config, first.run.parts
            prompts = Prompts(config, parts) if config.sampling.prompts else None
            asked = draw.make_asked(config, parts, prompts)
            given["label"] = lambda index: asked(index)["label"]
    run = stage.run
    return draw.make_generate(stage.config, run.parts, weak=run.weak, decoded=True, given=given)


def samples(stages: Sequence[Stage]) -> Callable[[np.ndarray], np.ndarray]:
    """(index [n]) -> the chain's samples of these numbers, uint8 [n, H, W, C], each by its number
    and the seed alone."""
    before: Any = None
    for number, stage in enumerate(stages):
        generate = stage_generate(stages, number, before)
        before = functools.partial(generate, stage.run.params)
    return before


def draw_chain(
    stages: Sequence[Stage],
    progress: Callable[[int, np.ndarray], None] | None = None,
    bar: bool = False,
) -> np.ndarray:
    """Samples 0 ... sampling.num - 1 of the first config, drawn by one stage after the other: the
    last one's, uint8 [N, H, W, C].

    progress: (stage, from 0, its images), called as soon as a stage is done, so that a caller can
    show them."""
    settings = stages[0].config.sampling
    images = np.zeros(0)
    for number, stage in enumerate(stages):
        before = images.__getitem__ if number else None
        generate = stage_generate(stages, number, before)
        images = draw.draw(generate, stage.run.params, settings.num, settings.batch_size, bar)
        if progress is not None:
            progress(number, images)
    return images


def records(stages: Sequence[Stage]) -> list[dict]:
    """What a chain's samples were drawn by, as JSON holds it."""
    return [
        {
            "run": str(stage.workdir),
            "step": stage.run.step,
            "conditioning": as_values(stage.config.conditioning),
            "sampling": as_values(stage.config.sampling),
        }
        for stage in stages
    ]


def manner_of(stages: Sequence[Stage]) -> str:
    """How a chain draws, as the name of a folder."""
    last = stages[-1]
    config = last.config
    named = manner(config, last.run.parts, last.run.step).removesuffix(f"{config.sampling.seed}")
    return f"chain{len(stages)}-{named}{stages[0].config.sampling.seed}"


def write_stage(stages: Sequence[Stage], folder: pathlib.Path, images: np.ndarray) -> None:
    """grid.png, samples.npz and a file an image of what a stage drew, with the first one's labels
    and texts."""
    first, parts = stages[0].config, stages[0].run.parts
    folders.save_preview(first, parts, folder / "grid.png", images)
    folders.save_samples(first, parts, folder, images)
