"""Quality against network calls, of several runs, samplers and numbers of steps: what `main.py
compare` measures."""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import write_text
from diffusion_jax.devices import flops
from diffusion_jax.evaluation import features, references
from diffusion_jax.evaluation.extract import Extracted, extract, key
from diffusion_jax.evaluation.scores import scores
from diffusion_jax.evaluation.side_by_side import wilson
from diffusion_jax.models.reuse import Reuse
from diffusion_jax.runs.build import Parts, make_grid, make_sampler
from diffusion_jax.runs.checks import check_diffuses
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.draw import labels, make_generate
from diffusion_jax.runs.network import Network
from diffusion_jax.runs.open import TrainedRun, manner, open_run
from diffusion_jax.runs.registry import Component
from diffusion_jax.runs.score import identity, sampled
from diffusion_jax.runs.settings import copy, override

ONLY = "compare takes only config.sampling and .evaluation settings"
OWN = "own"  # in place of a sampler: the run's, with its grid
CALLS = "calls.json"  # beside features: how often the network was called for a sample
COUNTED = 16  # samples that are drawn to count calls where nothing else is
PICTURED = 100  # samples that are kept beside their features, as by `evaluate`


class Point(NamedTuple):
    """One way of drawing: a run with a sampler, a grid and a number of steps."""

    name: str  # the run's
    workdir: pathlib.Path
    config: Config
    run: TrainedRun

    @property
    def line(self) -> tuple[str, str, str]:
        """What points of one curve have in common: run, sampler and grid."""
        sampling = self.config.sampling
        return self.name, called(sampling.sampler), called(sampling.grid)


def called(component: Component) -> str:
    """An entry's name with those of its arguments that are not the defaults: ddim(eta=1.0)."""
    given = {n: value for n, value in component.given.items()
             if value != component.setting(n).default}  # fmt: skip
    shown = ", ".join(f"{name}={value}" for name, value in sorted(given.items()))
    return f"{component.entry}({shown})" if shown else component.entry


def points_of(
    name: str,
    workdir: pathlib.Path,
    config: Config,
    samplers: Sequence[str],
    steps: Sequence[int],
) -> list[Point]:
    """A run's points, opened once.

    samplers: `own`, NAME or NAME:GRID. Without a grid it is the run's own; in place of a respaced
    one, whose single step would be the cleanest, it is the trailing one, but for `own` with the
    run's own number of steps. An explicit grid keeps its steps. Raises UserError for what cannot be
    drawn, before anything is."""
    check_diffuses(config, "compare is")
    config.sampling.tolerance = 0.0
    run, found = open_run(config, workdir, ONLY), {}
    for word in samplers:
        own = copy(config)
        if word != OWN:
            sampler, _, grid = word.partition(":")
            override(own, {"sampling.sampler": sampler})
            if grid:
                override(own, {"sampling.grid": grid})
        counts = [""] if own.sampling.grid.entry == "explicit" else map(str, steps)
        for count in counts:
            one = copy(own)
            if one.sampling.grid.entry == "respaced" and (
                word != OWN or count != config.sampling.steps
            ):
                one.sampling.grid = "trailing"
            one.sampling.steps = count or own.sampling.steps
            point = Point(name, workdir, one, run._replace(parts=drawing(one, run.parts)))
            found[(*point.line, one.sampling.steps)] = point
    return list(found.values())


def drawing(config: Config, parts: Parts) -> Parts:
    """The parts with the grid and the sampler of config.sampling."""
    try:
        grid = make_grid(config, parts.schedule)
        sampler = make_sampler(config, parts.schedule, grid, parts.variance)
    except ValueError as error:
        raise UserError(f"config.sampling: {error}") from None
    return parts._replace(grid=grid, sampler=sampler)


class Counting:
    """A network that counts, at run time, the examples of its calls in `rows`; one that uses deep
    features again counts as its share of the FLOPs."""

    def __init__(self, network: Network):
        self.network, self.rows = network, []
        self.can_reuse = getattr(network, "can_reuse", False)

    def count(self, x, share: float = 1.0) -> None:
        size = share * x.shape[0]
        jax.debug.callback(lambda: self.rows.append(size))

    def __call__(self, params, x, *rest, **named):
        self.count(x)
        return self.network(params, x, *rest, **named)

    def reusing(self, params, x, t, cond, reuse: Reuse):
        def cost(reuse: Reuse) -> float:
            call = lambda x: self.network.reusing(params, x, t, cond, reuse)
            return flops.count(jax.make_jaxpr(call)(x)).flops

        share = 1.0 if reuse.deep is None else cost(reuse) / cost(reuse._replace(deep=None))
        self.count(x, share)
        return self.network.reusing(params, x, t, cond, reuse)


def measure(
    point: Point,
    function: features.Features,
    reference: references.Reference,
    num: int,
    known: dict[str, dict],
) -> dict:
    """The row of a point: calls of the network a sample, which are counted, FID, KID and how many
    are recognised as asked. known: rows by their `key`; one that is there is returned as it is."""
    config, run = point.config, point.run
    settings, sampling = config.evaluation, config.sampling
    protocol = identity(config, run, function)
    how = f"{manner(config, run.parts, run.step)}-{function.name}-{key(protocol)}"
    judged = {"num": num, "reference": reference.statistics.record}
    judged |= {"replicates": settings.replicates, "subsets": settings.subsets}
    own = key(protocol | judged)
    if own in known:
        return known[own]
    shape = tuple(config.data.shape)
    extracted = Extracted(point.workdir / "evaluations" / how, protocol, shape, PICTURED)
    draw, calls = counting_draw(config, run)
    extract(extracted, function, draw, num, settings.batch_size, " ".join((*point.line, how)))
    found = scores(extracted, num, reference, settings.replicates, settings.subsets)
    row = {
        "run": point.name,
        "workdir": str(point.workdir),
        "step": run.step,
        "sampler": called(sampling.sampler),
        "grid": called(sampling.grid),
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "seed": sampling.seed,
        "calls": known_calls(extracted.folder / CALLS, calls, draw),
        "fid": found["fid"],
    }
    row |= {"kid": found["kid"]} if "kid" in found else {}
    probabilities = extracted.get("probabilities", num)
    if probabilities is not None and probabilities.shape[1] == asked_classes(config, run.parts):
        guessed = np.argmax(probabilities, axis=1)
        row["recognised"] = share(int((guessed == labels(config, np.arange(num))).sum()), num)
    return row | {"key": own}


def counting_draw(config: Config, run: TrainedRun) -> tuple[Callable, Callable[[], float | None]]:
    """(numbers [b] -> samples uint8 [b, H, W, C], () -> calls of the network for a sample of all
    that were drawn, None where none was). A call for a batch of twice as many counts as two."""
    network, drawn = Counting(run.parts.apply_fn), []
    parts = run.parts._replace(apply_fn=network)  # pyright: ignore[reportArgumentType]
    generate = sampled(make_generate(config, parts, weak=run.weak, decoded=True), run.params)

    def draw(index: np.ndarray) -> np.ndarray:
        devices = jax.device_count()
        drawn.append(-(-len(index) // devices) * devices)
        return generate(index)

    def calls() -> float | None:
        jax.effects_barrier()
        return sum(network.rows) / sum(drawn) if drawn else None

    return draw, calls


def known_calls(path: pathlib.Path, calls: Callable[[], float | None], draw: Callable) -> float:
    """The calls that are counted, or were and lie in the file; else of a few samples, drawn now."""
    found = calls()
    if found is None and path.is_file():
        return json.loads(path.read_text())
    if found is None:
        draw(np.arange(COUNTED))
        found = calls()
    assert found is not None
    write_text(path, json.dumps(found))
    return found


def asked_classes(config: Config, parts: Parts) -> int:
    """How many classes there are that a sample is asked to be of, 0 where none."""
    return config.data.num_classes if "label" in parts.conditioner.reads else 0


def share(hits: int, count: int) -> dict[str, Any]:
    """A share with Wilson's 95 % interval."""
    low, high = wilson(hits, count)
    return {"value": hits / count, "low": low, "high": high}
