"""How fast `main.py train` and `main.py sample` are, with all that a user waits for.

Command:   python benchmarks/commands.py startup --folder FOLDER [--network paper --batch 256
           --dtype bfloat16] [--log-every 50] [--lines 4]
           python benchmarks/commands.py sample --folder FOLDER [--network paper --batch 500
           --dtype bfloat16] [--num 5000]
Hardware:  any; of the paper's network an H100, where each takes some three minutes

startup: `main.py train` on `experiments/cosine.py` with an empty compilation cache, and again, in a
new workdir, with the cache that the first one left. Measured from the process's begin are the
seconds until the state is made and until the first step is done, and, where the log is, images/s
and the share of the time outside of steps, medians of the lines but the first; then the run is
stopped. The data is CIFAR-10, by TensorFlow Datasets where it is prepared, or what the environment
variable DATA names, a folder of PNG files or an .npz of `images`, or else generated images.

sample: a run of random weights is made, and drawn from by 50 DDIM steps, as `main.py sample` draws,
twice in one process: images/s with compiling, and without. Then `main.py sample` itself: seconds of
the whole process, with compiled programs from the cache and with the files that it writes.

FOLDER/startup.json and FOLDER/sample.json are written as the figures come."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from unet import NETWORKS, STEPS, get_config, write  # noqa: E402

from diffusion_jax.commands.import_ import import_weights  # noqa: E402
from diffusion_jax.core.errors import UserError  # noqa: E402
from diffusion_jax.interop.files import write_safetensors  # noqa: E402
from diffusion_jax.interop.state_dicts import to_torch_names  # noqa: E402
from diffusion_jax.modalities import pictures  # noqa: E402
from diffusion_jax.runs import draw, start  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.open import open_run  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402
from diffusion_jax.training.logging import read_metrics  # noqa: E402

GENERATED = 10_000  # images, where there is no CIFAR-10
SMALLER = {"small": {"model.channels": 64, "model.blocks": 2}, "paper": {}}  # than cosine.py's


def main_py(command: str, workdir: pathlib.Path, settings: dict, config: bool = False) -> list[str]:
    """The words of a command line."""
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    named = ["--config", str(ROOT / "experiments" / "cosine.py")] if config else []
    return [
        sys.executable,
        str(ROOT / "main.py"),
        command,
        "--workdir",
        str(workdir),
        *named,
        *flags,
    ]


def data(folder: pathlib.Path) -> dict:
    """Settings that name the data of a training."""
    if named := os.environ.get("DATA"):
        if pathlib.Path(named).suffix == ".npz":
            return {"data.source": "arrays", "data.source.folder": named}
        return folder_of(named)
    prepared = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if (prepared / "cifar10" / "3.0.2").is_dir():
        return {}
    print(f"note: no CIFAR-10 in {prepared}, but generated images", flush=True)
    images = folder / "generated"
    if not images.is_dir():
        images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(GENERATED):
            small = rng.integers(0, 256, (4, 4, 3), np.uint8)
            pictures.save(images / f"{i:05d}.png", small.repeat(8, axis=0).repeat(8, axis=1))
    return folder_of(str(images))


def folder_of(path: str) -> dict:
    """Decoding files is slower than an H100 trains, hence the cache."""
    return {"data.source": "folder", "data.source.folder": path, "data.source.cache": True}


def training(workdir: pathlib.Path, settings: dict, variables: dict, options) -> dict:
    """Figures of `main.py train` until so many lines of its log are written."""
    started, ready = time.perf_counter(), None
    process = subprocess.Popen(
        main_py("train", workdir, settings, config=True), env={**os.environ, **variables}
    )
    come: list[float] = []  # when each line did
    try:
        while process.poll() is None and len(come) < options.lines:
            now, log = time.perf_counter() - started, workdir / "log.txt"
            if ready is None and log.exists() and "starting" in log.read_text():
                ready = now
            come += [now] * (len(read_metrics(workdir)) - len(come))
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)  # it saves, as a run that a user stops
        status = process.wait()
    finally:
        process.kill()  # nothing of it outlives this one
    if status not in (0, 128 + signal.SIGTERM) or not come:
        raise UserError(f"main.py train ended with status {status}")
    shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
    lines = read_metrics(workdir)[: options.lines]
    # the first line's speed is that of its other steps
    after = (lines[0]["step"] - 1) * options.batch / lines[0]["images_per_second"]
    steady = lines[1:] or lines
    median = lambda name: statistics.median(line[name] for line in steady)
    said = (workdir / "log.txt").read_text().splitlines()
    return {
        "log": next((line for line in said if "starting" in line), ""),  # names the devices
        "ready_s": ready,
        "first_step_s": come[0] - after,
        "images_per_second": median("images_per_second"),
        "outside_step": median("outside_step"),
        "lines": [
            {name: line[name] for name in ("step", "images_per_second", "outside_step", "loss")}
            for line in lines
        ],
    }


def startup(options) -> None:
    settings = {
        **SMALLER[options.network],
        **data(options.folder),
        "model.dtype": options.dtype,
        "training.batch_size": options.batch,
        "training.log_every": options.log_every,
        "training.eval_every": 0,
        "training.sample_every": 0,
    }
    report: dict = {"settings": settings, "log_every": options.log_every}
    with tempfile.TemporaryDirectory() as place:
        variables = {"JAX_COMPILATION_CACHE_DIR": f"{place}/programs", "XDG_CACHE_HOME": place}
        for kind in ("cold", "cached"):
            workdir = options.folder / f"startup_{kind}"
            shutil.rmtree(workdir, ignore_errors=True)
            report[kind] = training(workdir, settings, variables, options)
            write(report, options.folder / "startup.json")
            print(
                "{kind}: ready after {ready_s:.1f} s, first step done after {first_step_s:.1f} s; "
                "{images_per_second:.0f} images/s, {outside_step:.2%} of the time outside of "
                "steps".format(kind=kind, **report[kind]),
                flush=True,
            )


def make_run(options) -> None:
    """A workdir of random weights, from which `main.py sample` draws: no step need be compiled."""
    start.prepare()
    config = get_config(options.batch, options.dtype, network=options.network)
    config.sampling.batch_size, config.sampling.num = options.batch, options.num
    parts, rng = build(config), np.random.default_rng(0)
    like = jax.eval_shape(parts.init_params, jax.random.key(0))
    params = jax.tree.map(lambda a: 0.02 * rng.standard_normal(a.shape, np.float32), like)
    with tempfile.TemporaryDirectory() as place:
        file = pathlib.Path(place) / "random.safetensors"
        write_safetensors(file, to_torch_names(params, parts.apply_fn.module))  # pyright: ignore[reportArgumentType]
        import_weights(file, config, options.workdir)


def passes(options) -> None:
    """Prints the seconds of drawing twice, as a line of JSON each."""
    start.prepare()
    config = load(options.workdir / "config.json")
    parts, params, _, weak = open_run(config, options.workdir, "no other settings")
    generate = draw.make_generate(config, parts, weak=weak, decoded=True)
    for _ in range(2):
        started = time.perf_counter()
        drawn = draw.draw(generate, params, options.num, options.batch)
        seconds = time.perf_counter() - started
        print(
            json.dumps({"seconds": seconds, "shape": drawn.shape, "devices": str(jax.devices())}),
            flush=True,
        )


def sample(options) -> None:
    workdir, file = options.folder / "sample", options.folder / "sample.json"
    shutil.rmtree(workdir, ignore_errors=True)
    own = [sys.executable, __file__, "--workdir", str(workdir)]
    for name in ("network", "batch", "dtype", "num"):
        own += [f"--{name}", str(getattr(options, name))]
    subprocess.run([*own, "make"], check=True)
    setting = {name: getattr(options, name) for name in ("network", "batch", "dtype", "num")}
    report: dict = {**setting, "steps": STEPS, "images_per_second": {}}
    with subprocess.Popen([*own, "passes"], stdout=subprocess.PIPE, text=True) as child:
        for name, line in zip(("with compiling", "without"), child.stdout or (), strict=False):
            found = json.loads(line)
            rate = options.num / found["seconds"]
            report["devices"], report["images_per_second"][name] = found["devices"], rate
            write(report, file)
            print(f"{name}: {rate:.1f} images/s", flush=True)
    if child.returncode:
        raise UserError(f"drawing ended with status {child.returncode}")
    started = time.perf_counter()
    subprocess.run(main_py("sample", workdir, {}), check=True)
    report["command_s"] = time.perf_counter() - started
    write(report, file)
    print(f"main.py sample, the whole process: {report['command_s']:.1f} s", flush=True)
    shutil.rmtree(workdir)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="The speed of `main.py train` and `main.py sample`."
    )
    works = {"startup": startup, "sample": sample, "make": make_run, "passes": passes}
    parser.add_argument("what", choices=tuple(works), metavar="startup|sample")
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("runs/gpu"))
    parser.add_argument("--network", choices=tuple(NETWORKS), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--lines", type=int, default=4, help="of metrics, and then it is stopped")
    parser.add_argument("--num", type=int, default=5000, help="of samples")
    parser.add_argument("--workdir", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # through `finally`
    try:
        works[options.what](options)
    except (UserError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
