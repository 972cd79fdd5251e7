"""Measures bits/dim of a trained run, by the variational bound term by term or by the ODE.

python main.py nll --workdir DIR
"""

import json
import pathlib

import numpy as np

from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.likelihood import best_steps
from diffusion_jax.runs import plots
from diffusion_jax.runs.bits import chain, check_bins, measure, standard_error
from diffusion_jax.runs.build import build, load_source
from diffusion_jax.runs.checks import check_attention
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import check_same, restore_params


def run(given: Given) -> str:
    """What `main.py nll` does with its flags."""
    return str(nll(given.config, given.workdir))


def nll(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Measures bits/dim over a split and writes workdir/nll/<how>.json; returns its path.

    The report has bits_per_dim with its standard error over the examples. That of the whole bound
    has besides the prior, the terms by t, the errors of x0 and eps by t and, for a budget, the
    chosen steps, and a plot of the terms (Nichol & Dhariwal 2021, fig. 2) in a .png of the same
    name."""
    check_same(config, workdir, "nll takes only config.likelihood.* settings")
    settings, parts = config.likelihood, build(config)
    check_bins(parts)
    flow = settings.method == "ode"
    grid = None if flow else chain(config, parts)
    source = load_source(config, settings.split)
    check_attention(config)
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
        how = settings.steps or str(parts.schedule.num_steps)
        report |= {
            "variance": parts.variance,
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
            table = parts.schedule.level(np.arange(parts.schedule.num_steps or 0))
            steps = best_steps(by_t["x0_mse"][::-1], table, settings.budget)
            report["best_steps"] = ",".join(map(str, steps))
        plots.bound(
            path.with_suffix(".png"), np.asarray(grid.t), by_t["terms"], report["bits_per_dim"]
        )
    write_text(path, json.dumps(report, indent=2) + "\n")
    error = report["standard_error"]
    print(f"{report['bits_per_dim']:.3f} bits/dim" + (f" +- {error:.3f}" if error else ""))
    return path
