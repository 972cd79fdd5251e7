"""What a transformer over large patches has to predict: JiT's finding (Li & He 2025) on 32 x 32
images.

Command:   python benchmarks/jit.py [--patches 16,4] [--steps 1500] [--num 500] [--folder DIR]
Hardware:  a CPU; half an hour of two cores

A DiT of 128 features, narrower than the 768 numbers of a 16 x 16 patch and wider than the 48 of a
4 x 4 one, learns 64 of OpenMoji's glyphs in colour, by class, on rectified flow. It predicts x0,
eps or the velocity; the loss is that of the velocity, so that the three differ in what the network
has to put out and in nothing else. The noise fills all 768 dimensions, the images few of them.
Printed, for each prediction and patch, are the loss of held-out pictures in the last line of the
run's log, the Fréchet distance of the samples to the training pictures, by the means of 2 x 2
pixels, and the samples' roughness, the root mean square difference of neighbouring pixels in
0 ... 1, which noise that is left raises; beside them stand those of as many held-out pictures. With
--folder the runs, and the grids of their samples, stay there."""

import argparse
import contextlib
import pathlib
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from diffusion_jax.commands.train import train  # noqa: E402
from diffusion_jax.data.emoji import Emoji  # noqa: E402
from diffusion_jax.devices import cpu  # noqa: E402
from diffusion_jax.evaluation.frechet import frechet_distance, of_rows  # noqa: E402
from diffusion_jax.runs.build import raw_source  # noqa: E402
from diffusion_jax.runs.config import (  # noqa: E402
    Config,
    Data,
    Diffusion,
    Sampling,
    Training,
    use,
)
from diffusion_jax.runs.draw import draw, make_generate  # noqa: E402
from diffusion_jax.runs.open import open_run  # noqa: E402
from diffusion_jax.training.logging import read_metrics  # noqa: E402

PREDICTIONS = ("x0", "flow", "eps")
SQUARE = 2  # pixels whose mean is a feature


def get_config(prediction: str, patch: int, steps: int, num: int) -> Config:
    return Config(
        data=Data(
            source=use("emoji", glyphs=64, templates=("plain", "background"), copies=8),
            shape=(32, 32, 3),
            num_classes=64,
        ),
        conditioning=use("label", dropout=0.1),
        model=use(
            "dit",
            width=128,
            depth=4,
            heads=4,
            patch=patch,
            norm="rms",
            qk_norm=True,
            positions="rotary",
            mlp="swiglu",
            time_scale=1000.0,
        ),
        diffusion=Diffusion(
            schedule="rectified_flow",
            prediction=prediction,
            weighting=use("flow", least=0.05),
            timesteps="logit_normal",
        ),
        training=Training(
            num_steps=steps,
            batch_size=32,
            learning_rate=1e-3,
            warmup_steps=100,
            decay="cosine",
            ema_decay=0.995,
            eval_every=steps,
            sample_every=0,
            checkpoint_every=steps,
        ),
        sampling=Sampling(sampler="heun_flow", grid="uniform", steps="25", clip_x0=False, num=num),
    )


def features(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, C] -> the means of squares, float64 [N, H W C / SQUARE^2], in 0 ... 1."""
    count, height, width, channels = images.shape
    squares = (count, height // SQUARE, SQUARE, width // SQUARE, SQUARE, channels)
    return (images.reshape(squares) / 255.0).mean(axis=(2, 4)).reshape(count, -1)


def roughness(images: np.ndarray) -> float:
    """The root mean square difference of pixels that are neighbours in a row."""
    return float(np.sqrt(np.square(np.diff(images / 255.0, axis=2)).mean()))


def pictures(source: Emoji) -> np.ndarray:
    return np.stack([source[i]["image"] for i in range(len(source))])


def main() -> int:
    parser = argparse.ArgumentParser(description="Predictions on large patches.")
    parser.add_argument("--patches", default="16,4")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--folder", type=pathlib.Path)
    options = parser.parse_args()
    cpu.tune()
    config = get_config("x0", 16, options.steps, options.num)
    learnt, unseen = (pictures(raw_source(config, split)) for split in ("train", "test"))
    real = of_rows(features(learnt))
    chosen = np.random.default_rng(0).choice(len(unseen), min(options.num, len(unseen)), False)
    beside = frechet_distance(of_rows(features(unseen[chosen])), real)
    print(
        f"{len(learnt)} pictures; {len(chosen)} held-out ones: distance {beside:.2f}, "
        f"roughness {roughness(unseen[chosen]):.3f}"
    )
    with contextlib.ExitStack() as opened:
        folder = options.folder or pathlib.Path(opened.enter_context(tempfile.TemporaryDirectory()))
        for patch in map(int, options.patches.split(",")):
            for prediction in PREDICTIONS:
                config = get_config(prediction, patch, options.steps, options.num)
                workdir = folder / f"{prediction}_{patch}"
                with contextlib.redirect_stdout(sys.stderr):
                    train(config, workdir)
                run = open_run(config, workdir, "the samples differ in config.sampling.* alone")
                generate = make_generate(config, run.parts, decoded=True)
                drawn = draw(generate, run.params, options.num, config.sampling.batch_size)
                distance = frechet_distance(of_rows(features(drawn)), real)
                lines = [line for line in read_metrics(workdir) if "eval_loss" in line]
                print(
                    f"patch {patch:2} ({3 * patch * patch:3} numbers) {prediction:5} "
                    f"held-out loss {lines[-1]['eval_loss']:.3f}  distance {distance:.2f}  "
                    f"roughness {roughness(drawn):.3f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
