"""The smallest run that is a whole run: the real digits, a U-Net of one level and 16 channels."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import main
from diffusion_jax.commands import train
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, use
from diffusion_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]


def tiny_config(**training) -> Config:
    settings = {
        "num_steps": 8,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "log_every": 1,
    }
    settings |= {"eval_every": 4, "eval_examples": 24, "sample_every": 0, "checkpoint_every": 4}
    return Config(
        data=Data(source="digits", shape=(8, 8, 1), num_classes=10, flip=True),
        model=use(
            "unet",
            channels=16,
            channel_mult=(1,),
            blocks=1,
            attention_resolutions=(),
            dropout=0.1,
        ),
        diffusion=Diffusion(schedule=use("cosine", num_steps=20), timesteps="second_moment"),
        training=Training(**(settings | training)),
        sampling=Sampling(steps="5", num=20),
    )


def mlp_config(**training) -> Config:
    """The tiny run with a perceptron, whose step compiles in a moment, where the network is of no
    matter."""
    config = tiny_config(**training)
    config.model = use("mlp", width=64, depth=1)
    return config


TINY_FILE = """
import sys
sys.path.insert(0, {tests!r})
from tiny import {config} as get_config
"""


def experiment_file(folder: pathlib.Path, config: str = "tiny_config") -> pathlib.Path:
    """An experiment file of a run of this module, for the command line."""
    path = folder / "tiny_experiment.py"
    path.write_text(TINY_FILE.format(tests=str(ROOT / "tests"), config=config))
    return path


@contextlib.contextmanager
def without_pictures():
    """Training draws none, which takes it longer than its steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "draw_picture", lambda run, state: None)
        patch.setattr(train.plots, "schedule", lambda *arguments: None)
        yield


def main_run(*arguments) -> None:
    """`main.py` with these words, in this process."""
    main.run(["main.py", *map(str, arguments)])


def command(*arguments) -> list:
    return [sys.executable, str(ROOT / "main.py"), *map(str, arguments)]


def environment(**more) -> dict:
    return {**os.environ, **more}


def run_command(*arguments, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*arguments), env=environment(**more), capture_output=True, text=True, timeout=300
    )


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def pixels(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def curves(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl without what the clock decides."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            name: value
            for name, value in line.items()
            if name not in ("images_per_second", "outside_step")
        }
        for line in lines
    ]


def final_state(config: Config, workdir: pathlib.Path):
    """(state, what a checkpoint holds besides) of a run's newest checkpoint."""
    like = jax.eval_shape(build(config).init_state, jax.random.key(0))
    return Checkpoints(workdir, read_only=True).restore(like)


def assert_same_run(reference: tuple[Config, pathlib.Path], workdir: pathlib.Path) -> None:
    """That a workdir holds the same run as (config, workdir), bit for bit."""
    (state, extra), (expected, expected_extra) = (
        final_state(reference[0], folder) for folder in (workdir, reference[1])
    )
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert extra == expected_extra
    assert curves(workdir) == curves(reference[1])


QUICK = {
    "features": "pixels", "num": 40, "batch_size": 20, "bits_per_dim": 0, "memorised": 0,
    "replicates": 0, "subsets": 3,
}  # fmt: skip


def evaluate_run(workdir: pathlib.Path, *flags, **settings) -> None:
    """`main.py evaluate`, quick unless config.evaluation's settings say otherwise."""
    given = (f"--config.evaluation.{name}={value}" for name, value in (QUICK | settings).items())
    main_run("evaluate", "--workdir", workdir, *flags, *given)


def write_pictures(folder: pathlib.Path, images: np.ndarray) -> pathlib.Path:
    """The folder, with a PNG file of each image [N, H, W, 1]."""
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze(-1)).save(folder / f"{i}.png")
    return folder
