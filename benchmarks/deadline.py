"""Whether `sample --deadline` keeps its time, and what more time is worth: 20 calls at each of
several deadlines.

Command:   python benchmarks/deadline.py [--workdir runs/digits] [--num 20] [--calls 20]
Hardware:  any; three minutes on one core, with compiling

Prints, a deadline a line, the times of the calls over the deadline (least, median, most), how many
lie within 15 %, the numbers of steps, and the error: the root-mean-square difference of x0 from 200
steps from the same noise, the mean of the calls. The sampler is DPM-Solver++(2M) on a grid even in
log-SNR, which draws no noise."""

import argparse
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from diffusion_jax.devices import cpu  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.deadline import make_draw_until  # noqa: E402
from diffusion_jax.runs.draw import make_generate  # noqa: E402
from diffusion_jax.runs.open import restore_params  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402

REFERENCE = 200  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/digits")
    parser.add_argument("--num", type=int, default=20, help="samples a call")
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--deadlines", default="0.5,1,2,4", help="seconds")
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--grid", default="logsnr")
    arguments = parser.parse_args()

    cpu.tune()
    config = load(arguments.workdir / "config.json")
    sampling = config.sampling
    sampling.sampler, sampling.grid = arguments.sampler, arguments.grid
    sampling.steps = str(REFERENCE)
    parts = build(config)
    params, _ = restore_params(config, parts, arguments.workdir, ema=True)
    index = np.arange(arguments.num)
    exact = make_generate(config, parts)(params, index)
    draw_until = make_draw_until(config, parts, decoded=False)
    first = draw_until(params, index, 0.1)
    print(f"{arguments.num} samples a call; compiling took {first.compiling:.1f} s")
    print("deadline   time / deadline        within 15 %   steps           error")
    for seconds in map(float, arguments.deadlines.split(",")):
        calls = [draw_until(params, index, seconds) for _ in range(arguments.calls)]
        times = np.array([call.seconds for call in calls]) / seconds
        steps = [call.steps for call in calls]
        errors = [float(np.sqrt(np.mean((call.data - exact) ** 2))) for call in calls]
        kept = int(np.sum(np.abs(times - 1.0) <= 0.15))
        print(
            f"{seconds:6g} s   {times.min():.3f} {np.median(times):.3f} {times.max():.3f}"
            f"      {kept:3d} of {len(calls)}     {min(steps):3d} ... {max(steps):3d}"
            f"     {np.mean(errors):.5f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
