"""The command `nll`: bits/dim of a trained run, by the variational bound, term by term, or by the
probability-flow ODE."""

import json
import pathlib

import jax
import numpy as np
import tqdm

from diffusion_jax.commands.sample import restore_params
from diffusion_jax.core import grids, schedules
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.core.noise import example_keys, fold_in
from diffusion_jax.core.types import Denoiser, Level
from diffusion_jax.data import pipeline, sources
from diffusion_jax.denoisers import clip_x0, make_denoiser
from diffusion_jax.devices.parallel import equal_batches, map_examples
from diffusion_jax.likelihood import ode
from diffusion_jax.likelihood import variational as likelihood
from diffusion_jax.runs import plots
from diffusion_jax.runs.build import Parts, build
from diffusion_jax.runs.config import Config, choose, differences, load
from diffusion_jax.runs.draw import model_variance
from diffusion_jax.training.step import to_float

METHODS = ("bound", "ode")


def nll(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Measures bits/dim over a split and writes workdir/nll/<how>.json; returns its path.

    The report has bits_per_dim with its standard error over the examples. That of the whole bound
    has besides the prior, the terms by t, the errors of x0 and eps by t and, for a budget, the
    chosen steps, and a plot of the terms (Nichol & Dhariwal 2021, fig. 2) in a .png of the same
    name."""
    changed = differences(load(workdir / "config.json"), config)
    if changed:
        raise UserError(f"nll takes only config.likelihood.* settings, not {'; '.join(changed)}")
    settings, data, parts = config.likelihood, config.data, build(config)
    flow = choose(METHODS, settings.method, "likelihood.method") == "ode"
    grid = None if flow else chain(config, parts)
    source = sources.load(data, settings.split)
    params, step = restore_params(config, parts, workdir, settings.ema)
    folder = make_folder(workdir / "nll")
    result = measure(config, parts, params, grid, source)

    report = {
        "bits_per_dim": float(result["total"].mean()),
        "standard_error": standard_error(result["total"]),
        "method": settings.method,
        "examples": len(result["total"]),
        "split": settings.split,
        "step": step,
        "ema": settings.ema,
        "seed": settings.seed,
    }
    if flow:
        how = f"ode-probes{settings.probes}" if settings.probes else "ode"
        report |= {
            "dequantization": "uniform",
            "probes": settings.probes,
            "tolerance": settings.ode_tolerance,
        }
    else:
        how = settings.steps or str(config.diffusion.num_steps)
        report |= {
            "variance": model_variance(config),
            "chain": how,
            "monte_carlo": settings.monte_carlo,
        }
    kind = f"step{step}-{settings.split}-{how}" + ("" if settings.ema else "-raw")
    kind += f"-seed{settings.seed}" if settings.seed else ""
    kind += f"-examples{settings.examples}" if settings.examples else ""
    kind += f"-monte-carlo{settings.monte_carlo}" if settings.monte_carlo and not flow else ""
    path = folder / f"{kind}.json"
    if grid is not None and "terms" in result:
        by_t = {name: result[name].mean(axis=0) for name in ("terms", "x0_mse", "eps_mse")}
        report["prior"] = float(result["prior"].mean())
        report["t"] = np.asarray(grid.t).tolist()
        report |= {name: values.tolist() for name, values in by_t.items()}
        if settings.budget:
            table = parts.schedule.level(np.arange(config.diffusion.num_steps))
            steps = likelihood.best_steps(by_t["x0_mse"][::-1], table, settings.budget)
            report["best_steps"] = ",".join(map(str, steps))
        plots.bound(
            path.with_suffix(".png"), np.asarray(grid.t), by_t["terms"], report["bits_per_dim"]
        )
    write_text(path, json.dumps(report, indent=2) + "\n")
    print(
        f"{report['bits_per_dim']:.3f} bits/dim"
        + (f" +- {error:.3f}" if (error := report["standard_error"]) else "")
    )
    return path


def chain(config: Config, parts: Parts) -> Level:
    """The levels whose terms make up the bound; UserError for settings that don't go together."""
    settings = config.likelihood
    check_table(config, parts)
    if settings.budget and (settings.steps or settings.monte_carlo):
        raise UserError(
            "config.likelihood.budget needs all terms of the whole table: no steps and no monte_carlo"
        )
    if settings.budget and not 2 <= settings.budget <= config.diffusion.num_steps:
        raise UserError(
            f"config.likelihood.budget must lie between 2 and {config.diffusion.num_steps}"
        )
    try:
        return (
            grids.respaced(parts.schedule, settings.steps)
            if settings.steps
            else grids.uniform(parts.schedule)
        )
    except ValueError as error:
        raise UserError(f"config.likelihood.steps: {error}") from None


def check_table(config: Config, parts: Parts) -> None:
    """Raises UserError where the schedule is no table, whose steps' terms make up the bound."""
    if parts.schedule.num_steps is None:
        tables, name = ", ".join(schedules.BETAS), config.diffusion.schedule
        raise UserError(
            f"the bound and the figures need a table of steps ({tables}); {name} has config.likelihood.method=ode"
        )


def standard_error(values: np.ndarray) -> float | None:
    """Of the mean; None, JSON's null, for a single value."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def measure(
    config: Config, parts: Parts, params, grid: Level | None, source
) -> dict[str, np.ndarray]:
    """`total`, bits/dim of every example, and for the whole bound all fields of `likelihood.Bound`,
    the examples first.

    grid: the levels of the bound's terms; None measures by the ODE.
    """
    settings, key = config.likelihood, jax.random.key(config.likelihood.seed)
    variance = model_variance(config)

    def one_batch(params, index, batch):
        x0, keys = to_float(batch["image"]), example_keys(key, index)
        denoiser = make_denoiser(parts.apply_fn, params, parts.parameterization, batch.get("label"))
        if grid is None:
            return {"total": by_flow(config, parts, denoiser, keys, x0)}
        denoiser = clip_x0(denoiser)
        if settings.monte_carlo:
            total = likelihood.bound_monte_carlo(
                denoiser, keys, x0, grid, variance, settings.monte_carlo
            )
            return {"total": total}
        bound = likelihood.bound(denoiser, keys, x0, grid, variance)._asdict()
        return {name: values.T if values.ndim == 2 else values for name, values in bound.items()}

    mapped, count = map_examples(one_batch), min(settings.examples or len(source), len(source))
    size, results = min(settings.batch_size, count), []
    with tqdm.tqdm(total=count, unit="image") as bar:
        for index, kept in equal_batches(count, size):
            values = mapped(params, index, pipeline.examples(source, index))
            results.append({name: array[:kept] for name, array in values.items()})
            bar.update(len(results[-1]["total"]))
    return {name: np.concatenate([result[name] for result in results]) for name in results[0]}


def by_flow(config: Config, parts: Parts, denoiser: Denoiser, keys, x0):
    """Bits/dim [B] by the probability-flow ODE, of images with uniform noise over their bins."""
    settings = config.likelihood
    log_prob = ode.log_likelihood(
        denoiser,
        ode.dequantized(fold_in(keys, 0), x0),
        parts.schedule,
        fold_in(keys, 1) if settings.probes else None,
        settings.probes,
        rtol=settings.ode_tolerance,
        atol=settings.ode_tolerance,
    )
    return ode.bits_per_dim(log_prob, x0[0].size)
