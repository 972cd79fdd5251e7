"""What Improved DDPM's three ideas do for the likelihood of the digits, over several seeds.

Command:   python benchmarks/digits_likelihood.py [--workdir runs/likelihood] [--seeds 3]
           [--steps 500]

Trains the digits with linear and cosine schedules, L_simple with a fixed variance, L_hybrid and
L_vlb with a learned one, and prints the held-out bits/dim (all terms of T = 200, the 180 test
digits, averaged parameters) and, for L_vlb, the gradient noise scale with and without importance
sampling. Started again, it goes on where it stopped. Writes results.json to the workdir."""

import argparse
import json
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from diffusion_jax.commands.figures import gradient_noise  # noqa: E402
from diffusion_jax.commands.nll import nll  # noqa: E402
from diffusion_jax.commands.train import train  # noqa: E402
from diffusion_jax.data.sources import digits  # noqa: E402
from diffusion_jax.runs import config as configs  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.open import restore_params  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402

RUNS = {  # name -> (schedule, loss, variance, distribution of t)
    "linear, L_simple, fixed small": ("linear", "denoising", False, "uniform"),
    "cosine, L_simple, fixed small": ("cosine", "denoising", False, "uniform"),
    "linear, L_hybrid, learned": ("linear", "hybrid", True, "uniform"),
    "cosine, L_hybrid, learned": ("cosine", "hybrid", True, "uniform"),
    "cosine, L_vlb, learned": ("cosine", "vlb", True, "uniform"),
    "cosine, L_vlb, learned, importance-sampled": ("cosine", "vlb", True, "second_moment"),
}


def config_of(name: str, seed: int, steps: int) -> configs.Config:
    schedule, loss, learned, timesteps = RUNS[name]
    config = load(ROOT / "experiments" / "digits.py")
    config.seed = seed
    config.model.learned_variance = learned
    config.diffusion = configs.Diffusion(
        schedule=configs.use(schedule, num_steps=200), loss=loss, timesteps=timesteps
    )
    config.conditioning.label.dropout = 0.0
    config.training.num_steps = config.training.checkpoint_every = steps
    config.training.eval_every = config.training.sample_every = 0
    config.sampling.steps, config.sampling.num = "20", 10
    return config


def measure(name: str, seed: int, steps: int, folder: pathlib.Path) -> dict:
    """bits/dim, and for L_vlb the gradient noise scales, of one run, trained where it is not
    yet."""
    config = config_of(name, seed, steps)
    workdir = folder / f"{name.replace(', ', '-').replace(' ', '_')}-seed{seed}"
    train(config, workdir)
    report = json.loads(nll(config, workdir).read_text())
    result = {"bits_per_dim": report["bits_per_dim"]}
    if name == "cosine, L_vlb, learned":
        parts = build(config)
        params, _ = restore_params(config, parts, workdir, ema=True)
        (workdir / "figures").mkdir(exist_ok=True)
        result["noise"] = gradient_noise(
            config, workdir / "figures", parts, params, digits("train")
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The likelihood of the digits by schedule, loss and variance."
    )
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/likelihood"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    file = options.workdir / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for seed in range(options.seeds):
        for name in RUNS:
            if f"{name}, seed {seed}" not in results:
                results[f"{name}, seed {seed}"] = measure(
                    name, seed, options.steps, options.workdir
                )
                file.write_text(json.dumps(results, indent=2) + "\n")

    print(f"\nheld-out bits/dim after {options.steps} steps, T = 200, {options.seeds} seeds")
    for name in RUNS:
        bits = [results[f"{name}, seed {seed}"]["bits_per_dim"] for seed in range(options.seeds)]
        print(f"{name:<44} {np.mean(bits):6.3f}   ({', '.join(f'{b:.3f}' for b in bits)})")
    print("\ngradient noise scale at the parameters of L_vlb, in examples")
    noise = [
        results[f"cosine, L_vlb, learned, seed {seed}"]["noise"] for seed in range(options.seeds)
    ]
    for kind in noise[0]:
        scales = [scale[kind] for scale in noise]
        print(f"{kind:<44} {np.median(scales):8.0f}   ({', '.join(f'{s:.0f}' for s in scales)})")


if __name__ == "__main__":
    main()
