"""How good the samples of the digits run are, by a classifier trained on the real digits.

Command:   python benchmarks/digits_quality.py [--workdir runs/digits] [--num 1000]
           [--sampler dpmpp_2m --grid logsnr ...]
           python benchmarks/digits_quality.py --edits runs/digits/edits/.../edits.npz

Prints the accuracy of an SVM (RBF kernel, trained on the 1,617 real training digits) on the 180
held-out real digits and on class-conditional samples of the run, how far the samples' pixel mean
and standard deviation lie from the data's, and how far samples and held-out digits lie from the
nearest training image. Exits with status 1 where a figure misses its bound."""

import argparse
import pathlib
import sys
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from diffusion_jax.data.sources import digits  # noqa: E402
from diffusion_jax.runs.build import build  # noqa: E402
from diffusion_jax.runs.draw import draw, make_generate  # noqa: E402
from diffusion_jax.runs.folders import decoded  # noqa: E402
from diffusion_jax.runs.open import restore_params  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402


def flat(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 8, 8, 1] -> [N, 64] in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0


def classifier(images: Any, labels: Any) -> SVC:
    """An SVM (RBF kernel) trained on digits, uint8 [N, 8, 8, 1], and what they show, [N]."""
    return SVC(kernel="rbf", gamma="scale", C=10.0).fit(flat(images), labels)


def edits(path: pathlib.Path) -> int:
    """Prints how many results of `main.py edit` are recognised as their own class, of a translation
    as the one arrived at."""
    with np.load(path) as file:
        wanted = file["targets"] if "targets" in file else file["labels"]
        train = digits("train")
        found = classifier(train.images, train.labels).score(flat(file["results"]), wanted)
    print(f"{len(wanted)} edited digits recognised: {found:.1%}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="How good the samples of the digits run are.")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits"))
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument(
        "--steps", default=None, help='as in "100" or "ddim50"; the run\'s own by default'
    )
    parser.add_argument("--sampler", default=None, help="the run's own by default")
    parser.add_argument("--grid", default=None, help="the run's own by default")
    parser.add_argument(
        "--guidance", type=float, default=0.0, help="the weight w of classifier-free guidance"
    )
    parser.add_argument(
        "--edits", type=pathlib.Path, default=None, help="an edits.npz, judged instead of samples"
    )
    options = parser.parse_args()
    if options.edits:
        return edits(options.edits)
    config = load(options.workdir / "config.json")
    config.sampling.steps = options.steps or config.sampling.steps
    config.sampling.sampler = options.sampler or config.sampling.sampler
    config.sampling.grid = options.grid or config.sampling.grid
    config.sampling.guidance = options.guidance
    parts = build(config)
    params, step = restore_params(config, parts, options.workdir, config.sampling.ema)
    samples = decoded(
        parts,
        draw(
            make_generate(config, parts),
            params,
            options.num,
            config.sampling.batch_size,
            progress=True,
        ),
    )
    asked = np.arange(options.num) % 10

    train, test = digits("train"), digits("test")
    svm = classifier(train.images, train.labels)
    real, drawn = svm.score(flat(test.images), test.labels), svm.score(flat(samples), asked)
    mean = abs(samples.mean() - train.images.mean()) / 255
    std = abs(samples.std() - train.images.std()) / 255
    neighbours = NearestNeighbors(n_neighbors=1).fit(flat(train.images))
    distance = lambda images: np.median(neighbours.kneighbors(flat(images))[0])

    sampling = config.sampling
    how = f"{sampling.sampler.entry} {sampling.grid.entry} {sampling.steps}, "
    how += f"guidance {sampling.guidance:g}, seed {sampling.seed}"
    print(f"{options.num} samples of step {step}, {how}")
    print(f"real held-out digits recognised   {real:8.1%}   (at least 98 %)")
    print(f"samples recognised as asked       {drawn:8.1%}   (at least 95 %)")
    print(f"difference of the pixel mean      {mean:8.2%}   of the range (at most 3 %)")
    print(f"difference of the pixel deviation {std:8.2%}   of the range (at most 3 %)")
    near, usual = distance(samples), distance(test.images)
    print(
        f"median distance to the nearest training image: samples {near:.2f}, held-out digits "
        f"{usual:.2f}"
    )
    return 0 if real >= 0.98 and drawn >= 0.95 and mean <= 0.03 and std <= 0.03 else 1


if __name__ == "__main__":
    sys.exit(main())
