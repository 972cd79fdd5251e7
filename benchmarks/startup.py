"""How long until the first training step of the Improved DDPM U-Net: from nothing, and from JAX's
compilation cache.

Command:   python benchmarks/startup.py [--rounds 2] [--json FILE]
Hardware:  any; two minutes on two cores

Each start is a new process, which does what `main.py` does but for data, workdir and log: import,
make the parameters, compile the step, take it. A round is `cold`, with an empty cache, and
`cached`, with the one that `cold` left. The network is that of `benchmarks/unet.py`. Printed are
medians in seconds. `compiling`, by JAX's own clock, is a part of the first step, reading from the
cache included; the rest is tracing and taking the step. `step` is the second one, which compiles
nothing."""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES = (
    "import jax",
    "import diffusion_jax",
    "parameters",
    "first step",
    "compiling",
    "step",
    "all",
)


def start() -> dict:
    """Seconds of each stage in this process."""
    marks = [time.perf_counter()]
    mark = lambda: marks.append(time.perf_counter())
    import jax

    mark()
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    import numpy as np

    import diffusion_jax  # noqa: F401
    from diffusion_jax.commands import train as loop  # noqa: F401
    from diffusion_jax.devices import (
        cpu,
        parallel,  # noqa: F401
    )
    from diffusion_jax.runs.build import build

    mark()
    from unet import get_config, training_step

    cpu.tune()
    config = get_config(32, "float32", clip_norm=1.0)  # as experiments have it
    parts, layout = build(config), parallel.layout()
    init_key, key = jax.random.split(jax.random.key(0))
    where = layout.state(jax.eval_shape(parts.init_state, init_key))
    state = jax.block_until_ready(parallel.initial(parts.init_state, init_key, where))
    mark()
    take_steps = parallel.make_take_steps(layout, training_step(config, parts, layout), where)
    batch = {"image": np.zeros((1, 32, 32, 32, 3), np.uint8)}
    compiling = []

    def keep(event: str, duration_secs: float, **_) -> None:
        if event.endswith("/backend_compile_duration"):
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(keep)
    state, _ = jax.block_until_ready(take_steps(state, key, batch))
    mark()
    compiled = sum(compiling)
    jax.block_until_ready(take_steps(state, key, batch))
    mark()
    *taken, step = (b - a for a, b in itertools.pairwise(marks))
    return dict(zip(STAGES, (*taken, compiled, step, marks[-2] - marks[0]), strict=True))


def child(cache: str) -> dict:
    variables = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    command = [sys.executable, __file__, "--start"]
    return json.loads(
        subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="The time to the first training step.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--start", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start()))
        return 0
    taken: dict = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("cold", "cached"):
                taken.setdefault(kind, []).append(child(cache))
    medians = {
        name: {stage: statistics.median(run[stage] for run in runs) for stage in STAGES}
        for name, runs in taken.items()
    }
    print(f"{'':8}" + "".join(f"{stage:>22}" for stage in STAGES))
    for name, stages in medians.items():
        print(f"{name:8}" + "".join(f"{seconds:22.2f}" for seconds in stages.values()))
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
