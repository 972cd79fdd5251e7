"""Plots of a workdir (matplotlib): its schedule and its curves."""

import pathlib

import matplotlib
import matplotlib.figure
import numpy as np

from diffusion_jax.core import schedules
from diffusion_jax.core.types import Schedule


def _axes(columns: int):
    width = 4.5 * columns
    figure = matplotlib.figure.Figure(figsize=(width, 3.4))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    # inches for the labels, in place of a layout that measures them, which takes as long as drawing
    figure.subplots_adjust(0.75 / width, 0.15, 1 - 0.15 / width, 0.91, wspace=0.19)
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure, axes


def schedule(path: pathlib.Path, shown: Schedule, betas: np.ndarray | None, title: str) -> None:
    """A schedule by t: alphas_cumprod, signal-to-noise ratio and variances of a table's betas [T],
    or see `continuous`."""
    if betas is None:
        continuous(path, shown, title)
        return
    tables, t = schedules.posterior_tables(betas), np.arange(len(betas))
    figure, axes = _axes(3)
    alphas_cumprod = tables["alphas_cumprod"]
    axes[0].plot(t, alphas_cumprod)
    axes[0].set_title(f"alphas_cumprod, {title}")
    axes[1].semilogy(t, alphas_cumprod / (1 - alphas_cumprod))
    axes[1].set_title("signal-to-noise ratio")
    axes[2].semilogy(t[1:], tables["posterior_variance"][1:], label="posterior variance")
    axes[2].semilogy(t, betas, "--", label="beta")
    axes[2].set_title("variance of a reverse step")
    axes[2].legend()
    for ax in axes:
        ax.set_xlabel("t")
    figure.savefig(path, dpi=110)


def continuous(path: pathlib.Path, shown: Schedule, title: str) -> None:
    """alpha, sigma and the log-SNR of a schedule in continuous time, by t."""
    t = np.linspace(shown.t_min, shown.t_max, 500)
    level = shown.level(t)
    figure, axes = _axes(3)
    curves = {f"alpha, {title}": level.alpha, "sigma": level.sigma, "log-SNR": level.logsnr}
    for ax, (name, values) in zip(axes, curves.items(), strict=True):
        ax.plot(t, np.asarray(values))
        ax.set_title(name)
        ax.set_xlabel("t")
    figure.savefig(path, dpi=110)


def bound(path: pathlib.Path, t: np.ndarray, terms: np.ndarray, total: float) -> None:
    """The terms of the variational bound [N], in bits/dim, by t (Nichol & Dhariwal 2021, fig.
    2)."""
    figure, axes = _axes(1)
    axes[0].semilogy(t, terms)
    axes[0].set_title(f"terms of the bound, {total:.3f} bits/dim in all")
    axes[0].set_xlabel("t")
    axes[0].set_ylabel("bits/dim")
    figure.savefig(path, dpi=110)


def losses(path: pathlib.Path, lines: list[dict]) -> None:
    """The curves of a run from the lines of its metrics.jsonl."""
    figure, axes = _axes(3)

    def curve(ax, name, label=None, **style):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            ax.plot(*zip(*points, strict=True), label=label or name, **style)

    curve(axes[0], "loss", "training", alpha=0.5)
    curve(axes[0], "eval_loss", "held-out, EMA", marker=".")
    axes[0].set_title("loss")
    for q in range(4):
        curve(axes[1], f"loss_q{q}", f"quarter {q + 1} of t", alpha=0.7)
    axes[1].set_title("loss by t, 1 the cleanest")
    axes[1].set_yscale("log")
    curve(axes[2], "grad_norm")
    axes[2].set_title("norm of the gradient")
    for ax in axes:
        ax.set_xlabel("step")
    for ax in axes[:2]:
        if ax.lines:
            ax.legend()
    figure.savefig(path, dpi=110)


def comparison(path: pathlib.Path, rows: list[dict], features: str) -> None:
    """FID, with its intervals, and the share recognised against network calls, both axes
    logarithmic but for the share; one line a run, sampler and grid. rows: see
    `runs.comparison.measure`."""
    judged = [("fid", f"FID, {features} features")]
    if any("recognised" in row for row in rows):
        judged.append(("recognised", "recognised as asked"))
    figure, axes = _axes(len(judged))
    lines: dict[tuple, list[dict]] = {}
    for row in rows:
        lines.setdefault((row["run"], row["sampler"], row["grid"]), []).append(row)
    shared = [len({line[i] for line in lines}) == 1 for i in range(3)]
    for ax, (name, title) in zip(axes, judged, strict=True):
        for line, members in lines.items():
            shown = sorted((row for row in members if name in row), key=lambda row: row["calls"])
            values = [row[name]["value"] for row in shown]
            ends = [[row[name].get(end, row[name]["value"]) for row in shown]
                    for end in ("low", "high")]  # fmt: skip
            errors = np.abs(np.array(ends) - values)
            if name == "fid":  # a logarithm has no bar to 0 or below
                errors[0] = np.minimum(errors[0], 0.9 * np.array(values))
            called = [word for word, same in zip(line, shared, strict=True) if not same]
            ax.errorbar([row["calls"] for row in shown], values, errors, fmt=".-", capsize=2,
                        linewidth=1, label=", ".join(called) or line[0])  # fmt: skip
        calls = sorted({round(row["calls"]) for row in rows})
        ax.set_xscale("log")
        ax.set_xticks(calls, [str(count) for count in calls])
        ax.minorticks_off()
        ax.set_xlabel("network calls a sample")
        ax.set_title(title)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
