"""Whether the samples of the digits by two words show both: the digit, and its polarity.

Command:   python benchmarks/digits_text.py [--workdir runs/digits_text] [--num 1000]

Draws "zero", "zero inverted", "one", ... in turn. Two SVMs (RBF kernel) that were trained on the
real training digits, as they are and inverted, say which digit a sample shows and whether it is
inverted; beside stands how many real held-out pictures they recognise. Exits with status 1 where a
share of the samples is below 95 %."""

import argparse
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks.digits_quality import classifier, flat  # noqa: E402
from diffusion_jax.data.sources import WORDS, digits  # noqa: E402
from diffusion_jax.data.texts import decode  # noqa: E402
from diffusion_jax.evaluation.side_by_side import wilson  # noqa: E402
from diffusion_jax.runs.draw import draw, make_generate  # noqa: E402
from diffusion_jax.runs.open import open_run  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402


def said(texts: list[str]) -> dict[str, np.ndarray]:
    """What is asked for, by name: the digit and whether it is inverted."""
    return {
        "digit": np.array([WORDS.index(text.split()[0]) for text in texts]),
        "inverted": np.array([text.endswith(" inverted") for text in texts]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether samples show both words of a prompt.")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits_text"))
    parser.add_argument("--num", type=int, default=1000)
    options = parser.parse_args()
    config = load(options.workdir / "config.json")
    prompts = [f"{word}{how}" for word in WORDS for how in ("", " inverted")]
    config.sampling.prompts = tuple(prompts)
    run = open_run(config, options.workdir, "the samples differ in config.sampling.* alone")
    generate = make_generate(config, run.parts, weak=run.weak, decoded=True)
    size = config.sampling.batch_size
    drawn = draw(generate, run.params, options.num, size, progress=True)
    asked = said([prompts[i % len(prompts)] for i in range(options.num)])

    fine = True
    print(f"{options.num} samples of step {run.step}, guidance {config.sampling.guidance:g}")
    train, test = digits("train", captions=True), digits("test", captions=True)
    known, real = (said([decode(row) for row in one.others["text"]]) for one in (train, test))
    for name, wanted in asked.items():
        judge = classifier(train.images, known[name])
        hits = int((judge.predict(flat(drawn)) == wanted).sum())
        low, high = wilson(hits, len(wanted))
        unseen = judge.score(flat(test.images), real[name])
        share = hits / len(wanted)
        print(f"{name:9} {share:6.1%} [{low:6.1%}, {high:6.1%}]   real held-out {unseen:6.1%}")
        fine &= share >= 0.95
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
