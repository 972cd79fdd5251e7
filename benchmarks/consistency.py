"""How good one and two steps of consistency models of the digits are, beside their teacher's.

Command:   python benchmarks/consistency.py --runs runs/digits_ect,runs/digits [--num 1000]
               [--how consistency:1,consistency:2,ddim:1,ddim:2,ancestral:100]

Prints of every run and sampler:steps, on the trailing grid (ancestral: the run's own), how many of
the samples an SVM recognises as the digit that was asked for and their FID, by the digits'
features, against the 1,617 training digits."""

import argparse
import copy
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.digits_quality import classifier, flat  # noqa: E402
from diffusion_jax.data.sources import digits  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.draw import draw, make_generate  # noqa: E402
from diffusion_jax.runs.folders import decoded  # noqa: E402
from diffusion_jax.runs.open import restore_params  # noqa: E402
from diffusion_jax.runs.score import make_score  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402


def measured(config, workdir: pathlib.Path, how: str, num: int, svm) -> tuple[int, float, float]:
    """(the step of the run, the share recognised, the FID) of samples by sampler:steps."""
    config = copy.deepcopy(config)
    config.sampling.sampler, _, config.sampling.steps = how.partition(":")
    config.sampling.grid = "respaced" if how.startswith("ancestral") else "trailing"
    config.sampling.batch_size, config.evaluation.every_num = num, num
    parts = build(config)
    params, step = restore_params(config, parts, workdir, config.sampling.ema)
    samples = decoded(parts, draw(make_generate(config, parts), params, num, num))
    recognised = svm.score(flat(samples), np.arange(num) % 10)
    scores = make_score(config, parts)(lambda params, index: samples[np.asarray(index)], params)
    return step, recognised, scores["evaluation/fid"]


def main() -> None:
    parser = argparse.ArgumentParser(description="One and two steps of consistency models.")
    parser.add_argument("--runs", required=True, help="workdirs, by commas")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--how", default="consistency:1,consistency:2", help="sampler:steps")
    options = parser.parse_args()
    train = digits("train")
    svm = classifier(train.images, train.labels)
    print(f"{'run':<40} {'sampler':<16} recognised    FID   ({options.num} samples)")
    for workdir in map(pathlib.Path, options.runs.split(",")):
        config = load(workdir / "config.json")
        for how in options.how.split(","):
            step, recognised, fid = measured(config, workdir, how, options.num, svm)
            print(f"{f'{workdir}, step {step}':<40} {how:<16} {recognised:10.1%} {fid:6.2f}")


if __name__ == "__main__":
    main()
