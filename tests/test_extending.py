"""What CONTRIBUTING.md adds, each in one new file and one line of a registry, trains and samples
from the command line."""

import json

import numpy as np
import pytest
from contributing import add, additions, copied, several

ADDITIONS = additions()
TINY = {
    "training.num_steps": "20",
    "training.batch_size": "16",
    "training.warmup_steps": "2",
    "training.log_every": "20",
    "training.eval_every": "20",
    "training.eval_examples": "16",
    "training.checkpoint_every": "20",
    "training.sample_every": "0",
    "sampling.num": "6",
    "sampling.steps": "3",
}
SMALL = {"model": "mlp", "model.width": "16", "model.depth": "1"}
MEANINGS = (
    "mean distance from the median, above 0.",
    "number of words, which are 0 ... vocabulary - 1.",
    "of that teacher in the target, in [0, 1]; the rest is the data's.",
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A scratch copy of the project with all that the page adds, and the data of its commands."""
    copy = copied(tmp_path_factory.mktemp("extending"))
    for addition in ADDITIONS.values():
        add(copy, addition)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    np.savez(copy / "captions.npz", images=images, text=rng.integers(0, 100, (60, 4)))
    centres, ring = 4.0 * rng.standard_normal((60, 1, 2)), np.linspace(0, 2 * np.pi, 24)
    circles = centres + np.stack([np.cos(ring), np.sin(ring)], axis=-1)
    np.savez(copy / "points.npz", points=circles)
    return copy


def asked(noun, without="", **changed):
    """The page's command with tiny settings, without the flags that contain a text, with others."""
    command = [word for word in ADDITIONS[noun].command if not without or without not in word]
    named = {word.partition("=")[0] for word in command}
    small = {} if "--config.model" in named else SMALL
    return [*command, *(f"--config.{path}={value}" for path, value in (TINY | small).items())]


def follow(copy, noun, *more):
    """(workdir, results): the command trained, then others of its workdir were run."""
    command = asked(noun)
    workdir = command[command.index("--workdir") + 1]
    others = [[word.replace("WORKDIR", workdir) for word in words] for words in more]
    trained, *results = several(copy, command, *others)
    assert trained.returncode == 0, trained.stderr
    lines = (copy / workdir / "metrics.jsonl").read_text().splitlines()
    found = {name: value for line in lines for name, value in json.loads(line).items()}
    assert found["step"] == 20
    assert np.isfinite([found["loss"], found["eval_loss"]]).all()
    assert list((copy / workdir / "samples").glob("*.png"))
    return copy / workdir, results


SAMPLE = ["main.py", "sample", "--workdir", "WORKDIR"]


def samples(copy, sampled):
    """The arrays of samples.npz."""
    assert sampled.returncode == 0, sampled.stderr
    folder = copy / sampled.stdout.rpartition("samples: ")[2].strip()
    assert (folder / "grid.png").exists()
    with np.load(folder / "samples.npz") as file:
        return dict(file)


def assert_refused(done, line):
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


def test_the_page_adds_one_of_each_in_a_few_lines():
    nouns = ["schedule", "network", "objective", "codec", "modality", "sampler"]
    assert list(ADDITIONS) == nouns
    assert all(len(addition.code.splitlines()) < 40 for addition in ADDITIONS.values())


def test_a_schedule_of_two_hyperparameters(copy):
    setting = "--config.diffusion.schedule."
    workdir, results = follow(
        copy,
        "schedule",
        [*asked("schedule"), f"{setting}b=-1"],
        [*asked("schedule"), f"{setting}bb=1"],
        [*asked("schedule"), f"{setting}mu=high"],
        ["main.py", "list"],
    )
    stored = json.loads((workdir / "config.json").read_text())["diffusion"]["schedule"]
    assert stored == {"entry": "laplace", "mu": 0.0, "b": 0.8}
    *wrong, listed = results
    assert_refused(wrong[0], "config.diffusion.schedule: b must be above 0, not -1.0")
    assert "diffusion.schedule.bb'; did you mean" in wrong[1].stderr
    assert_refused(wrong[2], "config.diffusion.schedule.mu must be a number, not 'high'")
    assert all(f"\n  {addition.name:<18} " in listed.stdout for addition in ADDITIONS.values())
    assert all(meaning in listed.stdout for meaning in MEANINGS)


def test_a_network_that_reads_a_text(copy):
    guided = [*SAMPLE, "--config.sampling.guidance=1"]
    wrong = [*asked("network"), "--config.conditioning=given,augmentation"]
    _, (sampled, refused) = follow(copy, "network", guided, wrong)
    assert samples(copy, sampled)["images"].shape == (6, 8, 8, 1)
    complaint = "captioned takes the condition text alone, not text, augmentation"
    assert_refused(refused, f"config.model: {complaint}")


def test_an_objective_with_the_average_as_its_teacher(copy):
    follow(copy, "objective")


def test_a_codec_that_halves_images(copy):
    nll = ["main.py", "nll", "--workdir", "WORKDIR"]
    plan = ["main.py", "plan", *asked("codec")[3:]]
    assert "--workdir" not in plan
    odd = [*plan, "--config.data.shape=7,8,1"]
    _, (sampled, measured, refused) = follow(copy, "codec", SAMPLE, nll, odd)
    drawn = samples(copy, sampled)["images"]
    assert drawn.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(drawn, drawn[:, ::2, ::2].repeat(2, 1).repeat(2, 2))
    complaint = (
        "bits/dim are of 8-bit data as they are, in [-1, 1], which this run's x0 is not "
        "(evaluate leaves them out with config.evaluation.bits_per_dim=0)"
    )
    assert_refused(measured, complaint)
    assert_refused(refused, "config.codec: images of 7 x 8 cannot be halved")


def test_a_modality_of_point_sets(copy):
    pixels = [*asked("modality", without="config.codec"), "--config.codec=pixels"]
    other = [*asked("modality"), "--config.data.shape=7,2"]
    flat = [*asked("modality"), "--config.data.shape=8,8,1"]
    data = ["main.py", "data", *asked("modality")[1:]]
    thresholded = [*SAMPLE, "--config.sampling.threshold=0.9"]
    _, (sampled, *wrong, report) = follow(
        copy, "modality", SAMPLE, pixels, other, flat, thresholded, data
    )
    drawn = samples(copy, sampled)["points"]
    assert drawn.shape == (6, 24, 2)
    assert drawn.dtype == np.float32
    complaints = (
        "config.codec: pixels scales a range, and float32 data have none; config.codec=floats "
        "takes them as they are",
        "points.npz has 'points' of shape (24, 2), but config.data.shape is (7, 2)",
        "config.data.shape: a set of points has the shape P, 2, not (8, 8, 1)",
        "config.sampling.threshold is of x0 in [-1, 1], which that of the codec floats is not",
    )
    for done, complaint in zip(wrong, complaints, strict=True):
        assert_refused(done, complaint)
    assert report.returncode == 0, report.stderr
