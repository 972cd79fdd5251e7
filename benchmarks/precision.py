"""Whether bfloat16 learns what float32 learns: the digits trained in both, from the same seeds, on
the same noise.

Command:   python benchmarks/precision.py [--steps 300] [--seeds 0 1 2]

Prints the held-out losses of both and their relative difference, seed by seed. Exits with status 1
where a difference is over the band, 0.2 %."""

import argparse
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from diffusion_jax.commands import train as loop  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402
from diffusion_jax.training import logging  # noqa: E402

EXPERIMENT = pathlib.Path(__file__).resolve().parents[1] / "experiments" / "digits.py"
BAND = 0.002  # about ten times the largest of seeds 0, 1 and 2


def held_out_loss(dtype: str, seed: int, steps: int) -> float:
    """Of the averaged parameters after so many steps of the digits' experiment."""
    config = load(EXPERIMENT)
    config.seed, config.model.dtype = seed, dtype
    training = config.training
    training.num_steps = training.eval_every = training.checkpoint_every = steps
    training.sample_every, training.log_every, config.sampling.steps, config.sampling.num = (
        0,
        10,
        "2",
        10,
    )
    with tempfile.TemporaryDirectory() as folder:
        loop.train(config, pathlib.Path(folder) / "run")
        (loss,) = [
            line["eval_loss"]
            for line in logging.read_metrics(pathlib.Path(folder) / "run")
            if "eval_loss" in line
        ]
    return loss


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether bfloat16 learns what float32 learns.")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    rows, started = [], time.time()
    for seed in options.seeds:
        exact, half = (
            held_out_loss(dtype, seed, options.steps) for dtype in ("float32", "bfloat16")
        )
        rows.append((seed, exact, half, half / exact - 1.0))
    print(f"held-out loss after {options.steps} steps; {time.time() - started:.0f} s")
    print("seed   float32   bfloat16   difference")
    for seed, exact, half, difference in rows:
        print(f"{seed:4}   {exact:7.5f}   {half:8.5f}   {difference:+10.2%}")
    worst = max(abs(difference) for *_, difference in rows)
    print(f"largest difference {worst:.2%} (at most {BAND:.1%})")
    return 0 if worst <= BAND else 1


if __name__ == "__main__":
    sys.exit(main())
