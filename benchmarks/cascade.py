"""What a cascade of two runs draws, beside one run of the same training time.

Command:   taskset -c 0 python benchmarks/cascade.py [--emoji] [--workdir runs/cascade] [--num 2000]
           [--scale 1.0]

Trains a base run at half the size, a run of super-resolution, the same without noise on the image
that it is told, and one run at the full size, for as many steps as take the time of the first two.
Prints the Fréchet distance (FID) of `num` samples of each to the training images, by the features
of a small classifier of them; how near the means of the chain's samples come to what the last run
was told; and how near super-resolution of held-out images comes to them, as a sample and as the
mean of several, beside bicubic interpolation. --scale is a factor of all numbers of steps. The runs
stay in the workdir, and what is trained is not trained again. Exits with status 1 where at
no level of noise in sampling the means' error is at most 0.05 and the chain without noise worse, or
where super-resolution beats bicubic by less than 2 dB and is no nearer by its features either."""

import argparse
import json
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from diffusion_jax.commands.train import train  # noqa: E402
from diffusion_jax.data import pipeline  # noqa: E402
from diffusion_jax.data.averaging import averaged  # noqa: E402
from diffusion_jax.evaluation.frechet import frechet_distance, statistics  # noqa: E402
from diffusion_jax.runs import cascade, start  # noqa: E402
from diffusion_jax.runs.build import raw_source  # noqa: E402
from diffusion_jax.runs.config import Config, use  # noqa: E402
from diffusion_jax.runs.draw import draw, make_generate  # noqa: E402
from diffusion_jax.runs.open import open_run  # noqa: E402
from diffusion_jax.runs.settings import copy, load  # noqa: E402
from experiments import digits, digits_base4, digits_sr8, emoji_sr32, emoji_text  # noqa: E402

LEVELS = (0.0, 0.1, 0.2)  # of noise in sampling
SEEDS = 8  # samples whose mean is taken
PILOT = 60  # steps by which the time of one is known
ONLY = "the samples differ in config.sampling.* and in the noise alone"


def configs(of_emoji: bool, scale: float) -> dict[str, Config]:
    """The runs' configs, by their name; the single one's number of steps is still to be set."""
    if of_emoji:
        found = {"base": emoji_text.get_config(), "sr": emoji_sr32.get_config()}
        found["single"] = emoji_text.get_config()
        found["single"].data.shape = found["sr"].data.shape
        found["single"].model.attention_resolutions = (8,)
    else:
        found = {"base": digits_base4.get_config(), "sr": digits_sr8.get_config()}
        found["single"] = digits.get_config()
        found["single"].sampling = digits_sr8.get_config().sampling
    found["sr without noise"] = copy(found["sr"])
    told = [one for one in found["sr"].conditioning if one.entry != "low"]
    bare = use("low", factor=2, noise=0.0, sampling_noise=0.0)
    found["sr without noise"].conditioning = [*told, bare]
    for config in found.values():
        training = config.training
        training.decay = "constant"  # so that the number of steps may change
        training.num_steps = max(2, round(scale * training.num_steps))
        training.log_every, training.eval_every, training.sample_every = 20, 0, 0
    return found


def seconds(workdir: pathlib.Path, config: Config) -> float:
    """What a step takes, by the median rate of the lines of the log but the first."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return config.training.batch_size / float(np.median(rates[1:] or rates))


def train_all(found: dict[str, Config], folder: pathlib.Path) -> None:
    """Trains the runs, and prints the time and the number of steps of each."""
    cost = {}
    for name in ("base", "sr", "sr without noise", "single"):
        config, workdir = found[name], folder / name.replace(" ", "_")
        if name == "single":
            if not (workdir / "config.json").exists():
                config.training.num_steps = PILOT
                train(config, workdir)
            steps = (cost["base"] + cost["sr"]) / seconds(workdir, config)
            done = load(workdir / "config.json").training.num_steps
            config.training.num_steps = done if done > PILOT else max(PILOT + 1, round(steps))
        train(config, workdir)
        cost[name] = config.training.num_steps * seconds(workdir, config)
        print(f"{name:18} {config.training.num_steps:6} steps, {cost[name]:6.0f} s in steps")


def classifier_features(images: np.ndarray, labels: np.ndarray) -> Any:
    """features(images) [N, 64]: the hidden layer of a classifier of these images."""
    flat = lambda images: images.reshape(len(images), -1) / 255.0
    model = MLPClassifier((64,), random_state=0, max_iter=1000, tol=1e-5)
    with threadpool_limits(1):
        model.fit(flat(images), labels)
    weights, bias = model.coefs_[0], model.intercepts_[0]
    return lambda images: np.maximum(flat(images) @ weights + bias, 0.0)


def everything(config: Config, split: str) -> dict[str, np.ndarray]:
    source = raw_source(config, split)
    return pipeline.examples(source, range(len(source)))


def drawn_by_chain(
    folder: pathlib.Path, last: str, level: float, num: int, small: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The images of both runs of a chain, at a level of noise in sampling. small: the first one's,
    where they are drawn already."""
    workdirs = [folder / "base", folder / last.replace(" ", "_")]
    loaded = cascade.configs_of(workdirs)
    loaded[0].sampling.num = num
    loaded[1].conditioning.low.sampling_noise = level
    stages = cascade.open_chain(workdirs, loaded, ONLY)
    if small is None:
        small = cascade.draw_chain(stages[:1])
    generate = cascade.stage_generate(stages, 1, small.__getitem__)
    size = loaded[0].sampling.batch_size
    return small, draw(generate, stages[1].run.params, num, size)


def drawn_by_one(workdir: pathlib.Path, num: int) -> np.ndarray:
    config = load(workdir / "config.json")
    run = open_run(config, workdir, ONLY)
    generate = make_generate(config, run.parts, decoded=True)
    return draw(generate, run.params, num, config.sampling.batch_size)


def decibels(images: np.ndarray, truth: np.ndarray) -> float:
    """PSNR of the squared error's mean over all images, of 0 ... 255."""
    return float(10 * np.log10(255.0**2 / np.square(images.astype(float) - truth).mean()))


def bicubic(low: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [N, H, W, C] of [N, h, w, C], by Pillow."""
    size, mode = (shape[1], shape[0]), Image.Resampling.BICUBIC
    enlarge = lambda image: np.asarray(Image.fromarray(image.squeeze()).resize(size, mode))
    return np.stack([enlarge(image) for image in low]).reshape(len(low), *shape)


def super_resolved(workdir: pathlib.Path, level: float, low: np.ndarray, test: dict) -> np.ndarray:
    """SEEDS samples of every held-out image, uint8 [SEEDS, N, H, W, C]."""
    config = load(workdir / "config.json")
    config.conditioning.low.sampling_noise = level
    run = open_run(config, workdir, ONLY)
    given = {"low": lambda index: low[index], "label": lambda index: test["label"][index]}
    given = {name: rows for name, rows in given.items() if name != "label" or tells_labels(config)}
    if any(one.entry == "words" for one in config.conditioning):
        config.sampling.prompts = tuple(bytes(t).rstrip(b"\0").decode() for t in test["text"])
    generate = make_generate(config, run.parts, decoded=True, given=given)
    index = np.arange(len(low))
    return np.stack([generate(run.params, index, seed=seed) for seed in range(SEEDS)])


def tells_labels(config: Config) -> bool:
    return any(one.entry == "label" for one in config.conditioning)


def main() -> int:
    parser = argparse.ArgumentParser(description="A cascade beside one run of the same time.")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/cascade"))
    parser.add_argument("--emoji", action="store_true", help="the emoji, not the digits")
    parser.add_argument("--num", type=int, default=2000, help="samples of each")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of steps")
    options = parser.parse_args()
    start.prepare()
    found, folder = configs(options.emoji, options.scale), options.workdir
    train_all(found, folder)
    data = everything(found["sr"], "train")
    features = classifier_features(data["image"], data["label"])
    reference = statistics([features(data["image"])])
    fid = lambda images: frechet_distance(statistics([features(images)]), reference)

    print(f"\n{'samples':32} {'FID':>8}  error of the means, root mean square of 0 to 1")
    single = fid(drawn_by_one(folder / "single", options.num))
    print(f"{'one run':32} {single:8.3f}")
    chains, errors = {}, {}
    small = None
    for level in (None, *LEVELS):
        name = "chain without noise" if level is None else f"chain, noise {level:g} in sampling"
        last = "sr without noise" if level is None else "sr"
        small, large = drawn_by_chain(folder, last, level or 0.0, options.num, small)
        error = (averaged(large, 2, rounded=False) - small) / 255.0
        chains[level], errors[level] = fid(large), float(np.sqrt(np.square(error).mean()))
        print(f"{name:32} {chains[level]:8.3f}  {errors[level]:.4f}")

    test = everything(found["sr"], "test")
    test = {name: rows[:180] for name, rows in test.items()}
    truth = test["image"]
    low = averaged(truth, 2, rounded=True).astype(np.uint8)
    apart = lambda images: float(np.square(features(images) - features(truth)).sum(1).mean())
    print(f"\n{len(truth)} held-out images                PSNR, dB   squared distance of features")
    plain = bicubic(low, truth.shape[1:])
    print(f"{'bicubic':32} {decibels(plain, truth):6.2f}   {apart(plain):8.3f}")
    gains, nearer = {}, {}
    for level in LEVELS:
        several = super_resolved(folder / "sr", level, low, test)
        mean = several.mean(axis=0)
        for name, images in (("sample", several[0]), (f"mean of {SEEDS}", mean)):
            gains[level, name] = decibels(images, truth) - decibels(plain, truth)
            nearer[level, name] = apart(images) < apart(plain)
            said = f"{name}, noise {level:g}"
            print(f"{said:32} {decibels(images, truth):6.2f}   {apart(images):8.3f}")
    fine = any(errors[level] <= 0.05 and chains[level] < chains[None] for level in LEVELS)
    fine &= max(gains.values()) >= 2.0 or any(nearer.values())
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
