"""Kills a run at random moments, during saves too, and compares what becomes of it with a run that
nothing disturbed.

Command:   python benchmarks/faults.py [--kills 20] [--terms 5] [--seed 0]
Hardware:  any; eight minutes on two cores, most of them starting anew

The run is the smallest that is a whole one (tests/tiny.py), with a checkpoint every other step, so
that one is being written most of the time. It is started, struck at a random moment by `kill -9`,
or by SIGTERM, and started again, by the same command, so often as asked; then it is left to end.
Every fifth blow may fall at any time since the process began, the others fall within two seconds
after its first save began. Exits with status 1 where

- the newest whole checkpoint after a blow is older than the newest that was complete before it, or
  is damaged;
- the next start does not go on from it, or calls a checkpoint damaged;
- SIGTERM ends a run that has begun with another status than 143, or without a checkpoint of its
  last step;
- in the end a parameter, the optimizer's state, the place in the data or a line of metrics.jsonl
  differs, in one bit, from those of a run of the same length that nothing disturbed.
"""

import argparse
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from tiny import command, curves, environment, experiment_file, tiny_config  # noqa: E402  # pyright: ignore

from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.training.checkpoint import CHECKSUMS, Checkpoints, damage  # noqa: E402

SETTINGS = {"checkpoint_every": 2, "eval_every": 0, "keep_checkpoints": 2}
MOMENTS = 2.0  # seconds within which a blow falls


class Faults:
    """What went wrong, said when it is found."""

    found = 0

    def expect(self, right: bool, message: str) -> None:
        if not right:
            self.found += 1
            print(f"WRONG: {message}", flush=True)


def arguments(workdir: pathlib.Path, num_steps: int) -> list:
    settings = [
        f"--config.training.{name}={value}"
        for name, value in (SETTINGS | {"num_steps": num_steps}).items()
    ]
    return command("--workdir", workdir, "--config", experiment_file(workdir.parent), *settings)


def complete(workdir: pathlib.Path) -> list[int]:
    """The steps whose folder has its name, which orbax gives it last."""
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()
    )


def partial_ones(workdir: pathlib.Path) -> list[pathlib.Path]:
    return list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def strike(
    workdir: pathlib.Path, number: int, rng: random.Random, longest: float, faults: Faults
) -> dict:
    """Starts the run, sends it a signal at a random moment and looks at what it left. Returns the
    blow's figures.

    longest: 0, or how many seconds a start takes, for a blow that may fall before its end.
    """
    from_the_start = longest > 0
    for path in partial_ones(
        workdir
    ):  # the run removes them itself; here, so as to know those of this start
        shutil.rmtree(path)
    before_start = complete(workdir)
    began = time.perf_counter()
    running = subprocess.Popen(
        arguments(workdir, 1_000_000),
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not from_the_start:
        while (
            complete(workdir) == before_start
            and not partial_ones(workdir)
            and running.poll() is None
        ):
            time.sleep(0.01)
    start_seconds = time.perf_counter() - began
    time.sleep(rng.uniform(0.0, longest + MOMENTS if from_the_start else MOMENTS))
    known = complete(workdir)
    running.send_signal(number)
    output = running.communicate()[0]
    status = running.returncode

    left = complete(workdir)
    partial = partial_ones(workdir)
    half_gone = [step for step in left[:-1] if damage(workdir / "checkpoints" / str(step))]
    resumed = re.search(r"resuming at step (\d+)", output)
    name = f"{signal.Signals(number).name} after {time.perf_counter() - began:.1f} s"
    faults.expect("Traceback" not in output and "damaged" not in output, f"{name}: {output[-600:]}")
    if before_start and ": starting," in output:
        faults.expect(
            False, f"{name}: began anew though there was a checkpoint of step {before_start[-1]}"
        )
    if resumed:
        faults.expect(
            int(resumed[1]) == before_start[-1],
            f"{name}: went on from {resumed[1]}, not from {before_start[-1]}",
        )
    if known:
        faults.expect(
            bool(left) and left[-1] >= known[-1],
            f"{name}: step {known[-1]} was complete, and {left} are left",
        )
    if left:
        newest = workdir / "checkpoints" / str(left[-1])
        faults.expect(
            (newest / CHECKSUMS).is_file() and not damage(newest),
            f"{name}: step {left[-1]} is damaged",
        )
    if number == signal.SIGTERM:
        saved = re.search(r"stopped and saved at step (\d+)", output)
        if saved:
            faults.expect(
                status == 143 and left[-1] == int(saved[1]) and not partial,
                f"{name}: {status}, {saved[0]}, {left}",
            )
        else:  # before its first step
            faults.expect(status == -signal.SIGTERM, f"{name}: status {status}: {output[-600:]}")
    else:
        faults.expect(status == -signal.SIGKILL, f"{name}: status {status}: {output[-600:]}")
    print(
        f"{name}: newest {left[-1] if left else None}, during a save: "
        f"{'yes' if partial else 'no'}, "
        f"during a removal: {'yes' if half_gone else 'no'}",
        flush=True,
    )
    return {
        "steps": (left[-1] if left else 0) - (before_start[-1] if before_start else 0),
        "save": bool(partial),
        "removal": bool(half_gone),
        "start": start_seconds if not from_the_start else None,
    }


def run_to_the_end(workdir: pathlib.Path, num_steps: int, faults: Faults) -> None:
    done = subprocess.run(
        arguments(workdir, num_steps), env=environment(), capture_output=True, text=True
    )
    faults.expect(
        done.returncode == 0, f"the last start ended with {done.returncode}: {done.stderr[-600:]}"
    )


def compare(workdir: pathlib.Path, reference: pathlib.Path, faults: Faults) -> None:
    like = jax.eval_shape(build(tiny_config(**SETTINGS)).init_state, jax.random.key(0))
    (state, extra), (expected, wanted) = (
        Checkpoints(w, read_only=True).restore(like) for w in (workdir, reference)
    )
    for (path, value), other in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True
    ):
        same = np.asarray(value).tobytes() == np.asarray(other).tobytes()
        faults.expect(same, f"{jax.tree_util.keystr(path)} differs from the undisturbed run's")
    faults.expect(extra == wanted, f"the place in the data differs: {extra} and {wanted}")
    faults.expect(
        curves(workdir) == curves(reference), "metrics.jsonl differs from the undisturbed run's"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="blows by kill -9")
    parser.add_argument("--terms", type=int, default=5, help="blows by SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    rng, faults, began = random.Random(options.seed), Faults(), time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(folder) / "cache")
        workdir, reference = pathlib.Path(folder) / "run", pathlib.Path(folder) / "undisturbed"
        blows = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.terms
        rng.shuffle(blows)
        results = []
        for index, number in enumerate(blows):
            starts = [result["start"] for _, result in results if result["start"]]
            results.append(
                (
                    number,
                    strike(
                        workdir, number, rng, max(starts, default=0.0) * (index % 5 == 4), faults
                    ),
                )
            )
        length = (complete(workdir) or [0])[-1] + 4
        length += length % 2
        run_to_the_end(workdir, length, faults)
        run_to_the_end(reference, length, faults)
        compare(workdir, reference, faults)

    kills = [result for number, result in results if number == signal.SIGKILL]
    starts = [result["start"] for _, result in results if result["start"]]
    print(f"kill -9: {len(kills)}, of them during a save {sum(k['save'] for k in kills)}, ", end="")
    print(
        f"during the removal of an old checkpoint {sum(k['removal'] for k in kills)}; SIGTERM: "
        f"{len(results) - len(kills)}"
    )
    print(
        f"steps gained between two blows: {[result['steps'] for _, result in results]}, {length} "
        "in all"
    )
    first = np.median(starts) if starts else float("nan")
    print(
        f"seconds to the first save: median {first:.1f}; in all {time.perf_counter() - began:.0f}"
    )
    print(
        "checkpoints lost, damaged or not gone on from, and differences from the undisturbed "
        f"run: {faults.found}"
    )
    return 1 if faults.found else 0


if __name__ == "__main__":
    sys.exit(main())
