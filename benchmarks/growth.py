"""How a training step's time and memory, and a chain's time, grow with batch, resolution, channels
and steps.

Command:   python benchmarks/growth.py [--seconds 4] [--json FILE]
Hardware:  any; eight minutes on two cores

From the U-Net of `benchmarks/unet.py` with 32 channels, for 16 x 16 images and a batch of 16, one
setting is changed at a time. Printed are the FLOPs of a training step, its median time, the one
over the other, and the memory that XLA gives the step's arrays in between; for chains of DDIM, the
time of a whole chain."""

import argparse
import json
import pathlib
import statistics
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from unet import get_config, times, training_step  # noqa: E402

from diffusion_jax.devices import cpu, flops  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.draw import make_generate  # noqa: E402

START = {"batch": 16, "resolution": 16, "channels": 32}
OTHERS = {"batch": (4, 32, 64), "resolution": (32, 64), "channels": (64, 128)}
CHAINS = (10, 25, 50)


def config_of(batch: int, resolution: int, channels: int, steps: int = 50):
    config = get_config(batch, "float32")
    config.data.shape = (resolution, resolution, 3)
    config.model.channels, config.sampling.steps = channels, str(steps)
    return config


def training(setting: dict, seconds: float) -> dict:
    config, size = config_of(**setting), setting["resolution"]
    parts, key = build(config), jax.random.key(0)
    state, images = (
        parts.init_state(key),
        {"image": np.zeros((setting["batch"], size, size, 3), np.uint8)},
    )
    traced = jax.jit(training_step(config, parts), donate_argnums=0).trace(state, key, images)
    count, step = flops.count(traced.jaxpr).flops, traced.lower().compile()
    held = [state]

    def work():
        held[0], metrics = step(held[0], key, images)
        jax.block_until_ready((held[0], metrics))

    median, analysis = statistics.median(times(work, seconds)), step.memory_analysis()
    return {
        "gflop": count / 1e9,
        "step_s": median,
        "gflop_per_s": count / 1e9 / median,
        "temporary_mb": analysis.temp_size_in_bytes / 1e6 if analysis else float("nan"),
    }


def chain(steps: int, seconds: float) -> float:
    config = config_of(**START, steps=steps)
    parts = build(config)
    params, generate = parts.init_state(jax.random.key(0)).params, make_generate(config, parts)
    return statistics.median(times(lambda: generate(params, np.arange(START["batch"])), seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description="Time and memory as the work grows.")
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring a setting")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    cpu.tune()
    report: dict = {"start": START, "training": [], "chains": {}}
    print(
        f"{'batch':>8}{'resolution':>12}{'channels':>10}{'GFLOP':>10}{'step, s':>10}"
        f"{'GFLOP/s':>10}{'MB':>10}"
    )
    settings = [
        START,
        *({**START, name: value} for name, values in OTHERS.items() for value in values),
    ]
    for setting in settings:
        found = training(setting, options.seconds)
        report["training"].append({**setting, **found})
        print(
            "".join(f"{v:{w}}" for v, w in zip(setting.values(), (8, 12, 10), strict=True)), end=""
        )
        print(
            "{gflop:10.2f}{step_s:10.3f}{gflop_per_s:10.0f}{temporary_mb:10.0f}".format(**found),
            flush=True,
        )
    for steps in CHAINS:
        report["chains"][steps] = chain(steps, options.seconds)
        print(f"{steps} DDIM steps: {report['chains'][steps]:.3f} s", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
