"""Every sampler's error against the number of network calls, on a mixture with its exact denoiser
and on the trained digits.

Command:   python benchmarks/samplers.py [--workdir runs/digits] [--num 1000] [--only dpmpp_2m,heun]
Hardware:  any; half an hour on two cores

Writes the tables into docs/samplers.md between their marks, the plot docs/samplers.png, and every
figure to docs/samplers.json.

On the mixture deterministic samplers are measured by the root-mean-square distance from the
probability-flow ODE's solution, stochastic ones by the sliced Wasserstein-2 distance of 4,000
samples from 4,000 exact ones. On the digits a classifier (an SVM trained on the real ones) says how
many samples it recognises as asked; the Frechet distance compares means and covariances of the
pixels with those of the training images."""

import argparse
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from digits_quality import classifier, flat  # noqa: E402

from diffusion_jax import samplers  # noqa: E402
from diffusion_jax.core import grids, schedules  # noqa: E402
from diffusion_jax.core.mixtures import Mixture  # noqa: E402
from diffusion_jax.core.noise import example_keys, initial_noise  # noqa: E402
from diffusion_jax.data.sources import digits  # noqa: E402
from diffusion_jax.evaluation import frechet  # noqa: E402
from diffusion_jax.runs import config as configs  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.draw import draw, make_generate  # noqa: E402
from diffusion_jax.runs.folders import decoded  # noqa: E402
from diffusion_jax.runs.open import restore_params  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402

CALLS = {
    "heun": 2,
    "heun_flow": 2,
    "edm_churn": 2,
    "dpm_solver_2": 2,
    "dpm_solver_3": 3,
    "predictor_corrector": 2,
}
CALLS |= {"annealed_langevin": 10}  # a step; 1 for all others
STOCHASTIC = (
    "ancestral",
    "euler_maruyama",
    "edm_churn",
    "dpmpp_2m_sde",
    "predictor_corrector",
    "annealed_langevin",
)
NAMES = [
    name for name in samplers.SAMPLERS if name not in ("euler", "adaptive_ode")
]  # euler is ddim
BUDGETS = {"mixture": (10, 20, 40, 80, 160), "digits": (5, 10, 20, 50)}
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5)
GRIDS = ("trailing", "logsnr")
BATCH = 500


def levels(name: str, budget: int) -> int:
    """How many levels a grid may have for a sampler to make at most `budget` calls; the last hop is
    one."""
    return (budget - 1) // CALLS.get(name, 1) + 1


# The mixture

MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))


def sliced_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """The root mean square, over 64 directions, of the distance of sorted projections."""
    angle = np.pi * np.arange(64) / 64
    directions = np.stack([np.cos(angle), np.sin(angle)])
    return float(
        np.sqrt(np.mean((np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)) ** 2))
    )


def mixture(names: list[str]) -> dict:
    """{sampler: {calls: error}} on VP's schedule with levels evenly spread in log-SNR."""
    schedule, count = schedules.vp(), 4000
    keys, key = example_keys(jax.random.key(0), jnp.arange(count)), jax.random.key(1)
    exact = np.asarray(jax.jit(MIXTURE.sample)(example_keys(key, jnp.arange(count))))
    x_init = initial_noise(
        example_keys(key, jnp.arange(count) + count), (2,), schedule.level(schedule.t_max)
    )

    def run(sampler, grid):
        return np.asarray(
            jax.jit(lambda x: samplers.sample(sampler, MIXTURE.denoiser, keys, x, grid))(x_init)
        )

    flow = run(samplers.adaptive_ode(1e-6, 1e-6, schedule), grids.logsnr(schedule, 2))
    results: dict = {}
    for name in names:
        stochastic, errors = name in STOCHASTIC, {}
        for budget in BUDGETS["mixture"]:
            num_steps = levels(name, budget)
            if num_steps < 2:
                continue
            taken = {"schedule": schedule} if name.startswith("dpm_solver") else {}
            x0 = run(samplers.SAMPLERS[name](**taken), grids.logsnr(schedule, num_steps))
            error = (
                sliced_wasserstein(x0, exact)
                if stochastic
                else float(np.sqrt(np.mean((x0 - flow) ** 2)))
            )
            errors[budget] = error
        results[name] = errors
        print(
            f"mixture  {name:20} "
            + "  ".join(f"{calls}: {error:.2g}" for calls, error in errors.items()),
            flush=True,
        )
    other = np.asarray(jax.jit(MIXTURE.sample)(example_keys(key, jnp.arange(count) + 2 * count)))
    results["floor"] = sliced_wasserstein(other, exact)
    results["adaptive_ode"] = adaptive(schedule, x_init, keys, flow)
    return results


def counted(function):
    """(the function, a list that grows by one at each of its calls at run time)."""
    calls: list[int] = []

    def counting(*arguments, **options):
        jax.debug.callback(lambda: calls.append(1))
        return function(*arguments, **options)

    return counting, calls


def adaptive(schedule, x_init, keys, flow) -> dict:
    """{calls: error} of the adaptive ODE at several tolerances; the calls are counted."""
    errors = {}
    for tolerance in TOLERANCES:
        denoiser, calls = counted(MIXTURE.denoiser)
        sampler, grid = (
            samplers.adaptive_ode(tolerance, tolerance, schedule),
            grids.logsnr(schedule, 2),
        )
        x0 = jax.jit(lambda x, s=sampler, d=denoiser, g=grid: samplers.sample(s, d, keys, x, g))(
            x_init
        )
        error = float(np.sqrt(np.mean((np.asarray(x0) - flow) ** 2)))
        jax.effects_barrier()
        errors[len(calls)] = error
    print(
        "mixture  adaptive_ode  "
        + "  ".join(f"{calls}: {error:.2g}" for calls, error in errors.items()),
        flush=True,
    )
    return errors


# The digits


class Judge:
    """Accuracy of digits_quality's SVM, and Frechet distance in the pixels."""

    def __init__(self):
        train = digits("train")
        self.classifier = classifier(train.images, train.labels)
        self.real = frechet.statistics([flat(train.images)])

    def __call__(self, images: np.ndarray) -> dict:
        pixels = flat(images)
        distance = frechet.frechet_distance(frechet.statistics([pixels]), self.real)
        accuracy = self.classifier.score(pixels, np.arange(len(images)) % 10)
        return {"accuracy": float(accuracy), "frechet": distance}


def trained_digits(names: list[str], workdir: pathlib.Path, num: int) -> dict:
    """{"sampler grid": {calls: {accuracy, frechet}}} of class-conditional samples of a digits
    run."""
    config, judge = load(workdir / "config.json"), Judge()
    sampling = config.sampling
    params = restore_params(config, build(config), workdir, ema=True)[0]

    def measure(sampler, grid: str, steps: str, count: bool = False) -> tuple[int, dict]:
        sampling.sampler, sampling.grid, sampling.steps = sampler, grid, steps
        parts, calls = build(config), []
        if count:
            apply_fn, calls = counted(parts.apply_fn)
            parts = parts._replace(apply_fn=apply_fn)
        images = decoded(parts, draw(make_generate(config, parts), params, num, BATCH))
        jax.effects_barrier()
        return len(calls) * BATCH // num, judge(images)

    results: dict = {
        "reference ancestral uniform": {250: measure("ancestral", "uniform", "250")[1]}
    }
    test = digits("test")
    order = np.argsort(
        np.arange(len(test.images)) % 10, kind="stable"
    )  # the held-out digits, for their distance alone
    results["held-out digits"] = {0: {"frechet": judge(test.images[order])["frechet"]}}
    print(json.dumps(results), flush=True)
    for name in names:
        for grid in GRIDS:
            results[f"{name} {grid}"] = measured = {}
            for budget in BUDGETS["digits"]:
                if levels(name, budget) > 1:
                    measured[budget] = measure(name, grid, str(levels(name, budget)))[1]
            print(f"digits  {name:20} {grid:8} {json.dumps(measured)}", flush=True)
    results["adaptive_ode"] = adaptive_results = {}
    ends = f"0,{config.diffusion.schedule.num_steps - 1}"
    for tolerance in (1e-1, 1e-2, 1e-3):
        sampler = configs.use("adaptive_ode", rtol=tolerance, atol=tolerance)
        calls, result = measure(sampler, "explicit", ends, count=True)
        adaptive_results[calls] = result
    print(f"digits  adaptive_ode {json.dumps(adaptive_results)}", flush=True)
    return results


# The page


def table(rows: dict, columns, cell) -> str:
    """Markdown: one row a sampler, one column a number of calls."""
    lines = [
        "| sampler | " + " | ".join(map(str, columns)) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, values in rows.items():
        lines.append(
            f"| {name} | "
            + " | ".join(cell(values[c]) if c in values else "" for c in columns)
            + " |"
        )
    return "\n".join(lines)


def page(results: dict) -> None:
    """Puts the tables between their marks in docs/samplers.md, and draws docs/samplers.png."""
    path, tables = ROOT / "docs" / "samplers.md", {}
    if "mixture" in results:
        found = {
            name: values for name, values in results["mixture"].items() if isinstance(values, dict)
        }
        for kind, chosen in (("deterministic", False), ("stochastic", True)):
            rows = {
                name: values
                for name, values in found.items()
                if (name in STOCHASTIC) == chosen and name != "adaptive_ode"
            }
            tables[kind] = table(rows, BUDGETS["mixture"], lambda error: f"{error:.2g}")
        steps = found["adaptive_ode"].items()
        tables["deterministic"] += "\n\n`adaptive_ode`: " + ", ".join(
            f"{error:.2g} in {calls} calls" for calls, error in steps
        )
        tables["stochastic"] += f"\n\nTwo sets of exact samples: {results['mixture']['floor']:.2g}."
    if "digits" in results:
        cell = lambda r: f"{r['frechet']:.2f} / {100 * r['accuracy']:.1f}"
        rows = {
            name: values
            for name, values in results["digits"].items()
            if len(name.split()) == 2 and "digits" not in name
        }
        tables["digits"] = table(rows, BUDGETS["digits"], cell)
        steps = results["digits"]["adaptive_ode"].items()
        tables["digits"] += "\n\n`adaptive_ode`: " + ", ".join(
            f"{cell(result)} in {calls} calls" for calls, result in steps
        )
        reference = results["digits"]["reference ancestral uniform"][250]
        real = results["digits"]["held-out digits"][0]["frechet"]
        tables["digits"] += f"; ancestral with 250: {cell(reference)}."
        tables["digits"] += (
            f" The 180 held-out digits: {real:.2f}, so few that the distance is biased upwards."
        )
    text = path.read_text()
    for kind, lines in tables.items():
        pattern = rf"(<!-- {kind} -->\n).*?(<!-- end -->)"
        text = re.sub(
            pattern, lambda m, lines=lines: f"{m[1]}\n{lines}\n\n{m[2]}", text, flags=re.DOTALL
        )
    path.write_text(text)
    plot(results)


def plot(results: dict) -> None:
    figure = matplotlib.figure.Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in results.get("mixture", {}).items():
        if isinstance(values, dict) and name not in STOCHASTIC:
            left.loglog(list(values), list(values.values()), ".-", label=name)
    left.set(
        xlabel="network calls",
        ylabel="distance from the ODE's solution",
        title="mixture, exact denoiser",
    )
    left.legend(fontsize="x-small")
    for name, values in results.get("digits", {}).items():
        best = [
            n for n in results["digits"] if n.split()[0] == name.split()[0] and len(n.split()) == 2
        ]
        if (
            name in best
            and "digits" not in name
            and min(best, key=lambda n: results["digits"][n][20]["frechet"]) == name
        ):
            line = ".--" if len(right.lines) >= 10 else ".-"  # there are ten colours
            right.loglog(list(values), [v["frechet"] for v in values.values()], line, label=name)
    right.set(
        xlabel="network calls",
        ylabel="Frechet distance in the pixels",
        title="trained digits, each sampler's better grid",
    )
    right.legend(fontsize="x-small")
    figure.savefig(ROOT / "docs" / "samplers.png", dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Every sampler's error against the number of network calls."
    )
    parser.add_argument("--workdir", type=pathlib.Path, default=ROOT / "runs" / "digits")
    parser.add_argument("--num", type=int, default=1000, help="samples of the digits a setting")
    parser.add_argument(
        "--only", default="", help="names of samplers, comma-separated; nothing is written then"
    )
    options = parser.parse_args()
    names = options.only.split(",") if options.only else NAMES
    if not (options.workdir / "config.json").is_file():
        print(
            f"error: {options.workdir} holds no run; make train makes runs/digits", file=sys.stderr
        )
        return 2
    results: dict = {
        "mixture": mixture(names),
        "digits": trained_digits(names, options.workdir, options.num),
    }
    if not options.only:
        results["machine"] = (
            f"{jax.device_count()} x {jax.devices()[0].device_kind}, JAX {jax.__version__}"
        )
        (ROOT / "docs" / "samplers.json").write_text(json.dumps(results, indent=1) + "\n")
        page(json.loads(json.dumps(results), object_hook=numbered))
    return 0


def numbered(values: dict) -> dict:
    """JSON's keys that are numbers, as numbers."""
    return {int(key) if key.isdigit() else key: value for key, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
