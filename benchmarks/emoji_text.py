"""How well the samples of a run on the emoji show what their captions say.

Command:   python benchmarks/emoji_text.py [--workdir runs/emoji] [--trained 200] [--held-out 100]
           [--guidance 3] [--steps 50] [--seed 0]
           python benchmarks/emoji_text.py --real [--glyphs 128] [--templates plain,background]

A judge, a small convolutional network, is trained on jittered real pictures of all captions alone,
never on samples. For captions of training and for combinations held out from it, it tells how often
the samples show the glyph asked for (first, or among the first five), its background and whatever
else the captions say, with 95 % intervals (Wilson 1927). Beside these stand the same of real
pictures that the judge has not seen (the ceiling) and of the samples against each other's captions
(the floor), and how far samples and these real pictures lie from the nearest training picture. With
--real there is no run: the ceiling and the floor alone. Exits with status 1 where a share lies
below its bound, which is a part of the ceiling: of captions of training 85 %, of held-out ones 70 %
for glyphs and 90 % for all else."""

import argparse
import collections
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.neighbors import NearestNeighbors

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from diffusion_jax.data.emoji import Emoji, emoji  # noqa: E402
from diffusion_jax.data.grammar import Combination  # noqa: E402
from diffusion_jax.data.spec import Declared  # noqa: E402
from diffusion_jax.evaluation.side_by_side import wilson  # noqa: E402
from diffusion_jax.runs.build import raw_source  # noqa: E402
from diffusion_jax.runs.config import Config  # noqa: E402
from diffusion_jax.runs.draw import draw, make_generate  # noqa: E402
from diffusion_jax.runs.latents import of_images  # noqa: E402
from diffusion_jax.runs.open import open_run  # noqa: E402
from diffusion_jax.runs.settings import load  # noqa: E402

SIDE = 16  # pictures are shrunk to about this
PICTURES, BATCH, STEPS = 20_000, 128, 800  # by which the judge is trained
LEARNT, UNSEEN = 10_000, 20_000  # numbers of the copies that it is trained on and that it is not
BOUNDS = {"trained": (0.85, 0.85), "held out": (0.7, 0.9)}  # of the ceiling: glyphs, all else
GLYPHS = ("glyph", "glyph at the right")


class Share(NamedTuple):
    hits: int
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count


Judge = Callable[[np.ndarray, Sequence[str]], dict[str, Share]]


class Network(nn.Module):
    """x [B, H, W, 3] in [-1, 1] -> a list of logits [B, n], one of each head."""

    heads: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        for channels in (64, 128):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2)(x))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return [nn.Dense(count)(x) for count in self.heads]


def shrunk(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32, the means of squares, about SIDE x SIDE, in [-1, 1]."""
    count, height, width, channels = images.shape
    by = max(1, min(height, width) // SIDE)
    cut = images[:, : height // by * by, : width // by * by].astype(np.float32)
    squares = cut.reshape(count, height // by, by, width // by, by, channels)
    return squares.mean(axis=(2, 4)) / 127.5 - 1.0


def noisy(key: jax.Array, x: jax.Array) -> jax.Array:
    """Pictures with another contrast, a tint and noise of up to a tenth of the range."""
    keys, one = jax.random.split(key, 4), (len(x), 1, 1, 1)
    gain = jax.random.uniform(keys[0], one, minval=0.85, maxval=1.1)
    tint = jax.random.uniform(keys[1], (len(x), 1, 1, 3), minval=-0.1, maxval=0.1)
    sigma = jax.random.uniform(keys[2], one, maxval=0.2)
    return jnp.clip(gain * x + tint + sigma * jax.random.normal(keys[3], x.shape), -1.0, 1.0)


def facts(source: Emoji, one: Combination) -> dict[str, str]:
    """What a combination's picture shows, by name."""
    names = [source.class_names[shown.number] for shown in one.shown]
    return {"background": "white", **dict(zip(GLYPHS, names, strict=False)), **dict(one.values)}


def train_judge(source: Emoji, seed: int = 0) -> Judge:
    """judge(images [N, H, W, 3], captions [N]) -> the share of pictures that show what is asked
    for, by what: "glyph", "glyph, of five", "background", ..."""
    known = [one for found in source.of_split.values() for one in found]
    told = [facts(source, one) for one in known]
    heads = {name: sorted({fact.get(name, "") for fact in told}) for fact in told for name in fact}
    heads = {name: values for name, values in heads.items() if len(values) > 1}
    numbers = np.array([[v.index(fact.get(n, "")) for n, v in heads.items()] for fact in told])
    counts = collections.Counter(one.template for one in known)
    copies = [max(4, PICTURES // len(counts) // counts[one.template]) for one in known]
    learnt = zip(known, copies, strict=True)
    images = [source.draw(one, LEARNT + k) for one, number in learnt for k in range(number)]
    x, y = shrunk(np.stack(images)), numbers.repeat(copies, axis=0)

    network = Network(tuple(map(len, heads.values())))
    params = network.init(jax.random.key(seed), x[:1])
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(STEPS, 3e-3), weight_decay=1e-3)

    @jax.jit
    def step(params, state, key, x, y):
        def loss(params):
            logits: Any = network.apply(params, noisy(key, x))
            of = optax.softmax_cross_entropy_with_integer_labels
            return sum(of(z, y[:, i]).mean() for i, z in enumerate(logits))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    random, state = np.random.default_rng(seed), optimizer.init(params)
    for i in range(STEPS):
        rows = random.integers(0, len(x), BATCH)
        params, state, _ = step(params, state, jax.random.key(i), x[rows], y[rows])
    apply, of_caption = jax.jit(network.apply), {one.caption: i for i, one in enumerate(known)}

    def judge(images, captions):
        rows = [of_caption[caption] for caption in captions]
        logits = dict(zip(heads, map(np.asarray, apply(params, shrunk(images))), strict=True))
        found = {}
        for column, (name, values) in enumerate(heads.items()):
            asked, order = numbers[rows, column], np.argsort(-logits[name], axis=1)
            said = np.array([values[i] != "" for i in asked])  # a caption may say nothing of it
            hits = (order == asked[:, None])[said]
            if said.any():
                found[name] = Share(int(hits[:, 0].sum()), len(hits))
            if said.any() and name in GLYPHS:
                found[f"{name}, of five"] = Share(int(hits[:, :5].any(axis=1).sum()), len(hits))
        return found

    return judge


def spread(found: Sequence[Combination], count: int, seed: int) -> list[Combination]:
    """As many of them, by chance, as there are."""
    chosen = np.random.default_rng(seed).permutation(len(found))[:count]
    return [found[i] for i in sorted(chosen)]


def fresh(source: Emoji, asked: Sequence[Combination], copies: int) -> np.ndarray:
    """Real pictures that neither the run nor the judge was trained on, `copies` of each in turn."""
    return np.stack([source.draw(one, UNSEEN + k) for k in range(copies) for one in asked])


def samples(config: Config, workdir: pathlib.Path, captions: Sequence[str]) -> tuple:
    """(uint8 [N, H, W, 3] drawn from a run, one a caption; the run's step)."""
    config.sampling.prompts = tuple(captions)
    run = open_run(config, workdir, "the samples differ in config.sampling.* alone")
    generate = make_generate(config, run.parts, weak=run.weak, decoded=True)
    size = config.sampling.batch_size
    return draw(generate, run.params, len(captions), size, progress=True), run.step


def table(
    judge: Judge, called: str, drawn: np.ndarray | None, real: np.ndarray, captions: list[str]
) -> bool:
    """Prints the shares of captions; whether all of the samples' lie above their bounds.

    drawn: the samples [N, H, W, 3], None for real pictures alone. real: [k N, H, W, 3].
    """
    ceiling = judge(real, captions * (len(real) // len(captions)))
    shown = real[: len(captions)] if drawn is None else drawn
    floor = judge(np.roll(shown, len(shown) // 2, axis=0), captions)
    found, fine = judge(shown, captions), True
    for name, share in found.items():
        low, high = wilson(*share)
        bound = BOUNDS[called][not name.startswith("glyph")] * ceiling[name].value
        line = f"{called:9} {name:26} {share.value:6.1%} [{low:6.1%}, {high:6.1%}]"
        line += f" {ceiling[name].value:7.1%} {floor[name].value:9.1%}"
        bounded = drawn is not None and not name.endswith("of five")
        print(f"{line} {bound:9.1%}" if bounded else line)
        fine &= not bounded or share.value >= bound
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description="How well samples show what captions say.")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/emoji"))
    parser.add_argument("--trained", type=int, default=200, help="captions of training")
    parser.add_argument("--held-out", type=int, default=100, help="held-out combinations")
    parser.add_argument("--guidance", type=float, default=None, help="the run's own by default")
    parser.add_argument("--steps", default=None, help="the run's own by default")
    parser.add_argument("--seed", type=int, default=0, help="of the captions and the judge")
    parser.add_argument("--real", action="store_true", help="judge real pictures, without a run")
    parser.add_argument("--glyphs", type=int, default=128, help="with --real")
    parser.add_argument("--templates", default="plain,background", help="with --real")
    options = parser.parse_args()
    config = None
    if options.real:
        templates = tuple(options.templates.split(","))
        source = emoji("train", Declared((16, 16, 3)), options.glyphs, templates)
    else:
        config = load(options.workdir / "config.json")
        sampling = config.sampling
        sampling.guidance = sampling.guidance if options.guidance is None else options.guidance
        sampling.steps = options.steps or sampling.steps
        source = raw_source(of_images(config), config.data.train_split)
    counts = {"train": options.trained, "test": options.held_out}
    asked = {n: spread(source.of_split[n], count, options.seed) for n, count in counts.items()}
    captions = {name: [one.caption for one in found] for name, found in asked.items()}
    real = {name: fresh(source, found, 5) for name, found in asked.items()}
    judge, drawn = train_judge(source, options.seed), {}
    if config:
        both, step = samples(config, options.workdir, captions["train"] + captions["test"])
        drawn = dict(zip(asked, np.split(both, [len(asked["train"])]), strict=True))
        print(f"{len(both)} samples of step {step}, guidance {config.sampling.guidance:g}")
    head = (
        f"{'captions':9} {'':26} {'share':>6} {'95 % interval':>16} {'ceiling':>7} {'shuffled':>9}"
    )
    print(head + f" {'at least':>9}" * bool(config))
    called, fine = {"train": "trained", "test": "held out"}, True
    for name in asked:
        fine &= table(judge, called[name], drawn.get(name), real[name], captions[name])

    flat = lambda images: shrunk(images).reshape(len(images), -1) * 127.5
    train = np.stack([source[i]["image"] for i in range(len(source))])
    neighbours = NearestNeighbors(n_neighbors=1).fit(flat(train))
    for name, pictures in (drawn or real).items():
        far = lambda images: np.median(neighbours.kneighbors(flat(images))[0])
        root = flat(pictures).shape[1] ** 0.5
        print(
            f"{called[name]}: median distance to the nearest training picture, of 0..255: "
            f"{'samples' if drawn else 'real'} {far(pictures) / root:.1f}, "
            f"unseen real pictures {far(real[name]) / root:.1f}"
        )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
