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


SAMPLE = ["main.py", "sample", "--workdir", "WORKDIR"]
GUIDED = [*SAMPLE, "--config.sampling.guidance=1"]
THRESHOLDED = [*SAMPLE, "--config.sampling.threshold=0.9"]
NLL = ["main.py", "nll", "--workdir", "WORKDIR"]
LIST = ["main.py", "list"]
PLAN, DATA = ["main.py", "plan", *asked("codec")[3:]], ["main.py", "data", *asked("modality")[1:]]
PIXELS = [*asked("modality", without="config.codec"), "--config.codec=pixels"]

# noun -> what follows its own command
COMMANDS = {
    "schedule": [
        *([*asked("schedule"), f"--config.diffusion.schedule.{w}"] for w in ("b=-1", "bb=1")),
        [*asked("schedule"), "--config.diffusion.schedule.mu=high"],
        LIST,
    ],
    "network": [GUIDED, [*asked("network"), "--config.conditioning=given,augmentation"]],
    "objective": [],
    "codec": [SAMPLE, NLL, [*PLAN, "--config.data.shape=7,8,1"]],
    "modality": [
        SAMPLE,
        PIXELS,
        *([*asked("modality"), f"--config.data.shape={shape}"] for shape in ("7,2", "8,8,1")),
        THRESHOLDED,
        DATA,
    ],
}


def workdir_of(noun):
    command = asked(noun)
    return command[command.index("--workdir") + 1]


@pytest.fixture(scope="module")
def done(copy):
    """noun -> what its command and those that follow did, all of them in one process, which starts
    once."""
    named = [
        (noun, [word.replace("WORKDIR", workdir_of(noun)) for word in words])
        for noun, more in COMMANDS.items()
        for words in (asked(noun), *more)
    ]
    results = several(copy, *(words for _, words in named))
    found = {noun: [] for noun in COMMANDS}
    for (noun, _), result in zip(named, results, strict=True):
        found[noun].append(result)
    return found


@pytest.fixture
def follow(copy, done):
    """follow(noun): (workdir, results of the commands that follow), where its own command trained
    a run."""

    def follow(noun):
        workdir, (trained, *results) = copy / workdir_of(noun), done[noun]
        assert trained.returncode == 0, trained.stderr
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        found = {name: value for line in lines for name, value in json.loads(line).items()}
        assert found["step"] == 20
        assert np.isfinite([found["loss"], found["eval_loss"]]).all()
        assert list((workdir / "samples").glob("*.png"))
        return workdir, results

    return follow


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


def test_a_schedule_of_two_hyperparameters(follow):
    workdir, (*wrong, listed) = follow("schedule")
    stored = json.loads((workdir / "config.json").read_text())["diffusion"]["schedule"]
    assert stored == {"entry": "laplace", "mu": 0.0, "b": 0.8}
    assert_refused(wrong[0], "config.diffusion.schedule: b must be above 0, not -1.0")
    assert "diffusion.schedule.bb'; did you mean" in wrong[1].stderr
    assert_refused(wrong[2], "config.diffusion.schedule.mu must be a number, not 'high'")
    assert all(f"\n  {addition.name:<18} " in listed.stdout for addition in ADDITIONS.values())
    assert all(meaning in listed.stdout for meaning in MEANINGS)


def test_a_network_that_reads_a_text(copy, follow):
    _, (sampled, refused) = follow("network")
    assert samples(copy, sampled)["images"].shape == (6, 8, 8, 1)
    complaint = "captioned takes the condition text alone, not text, augmentation"
    assert_refused(refused, f"config.model: {complaint}")


def test_an_objective_with_the_average_as_its_teacher(follow):
    follow("objective")


def test_a_codec_that_halves_images(copy, follow):
    assert "--workdir" not in PLAN
    _, (sampled, measured, refused) = follow("codec")
    drawn = samples(copy, sampled)["images"]
    assert drawn.shape == (6, 8, 8, 1)
    np.testing.assert_array_equal(drawn, drawn[:, ::2, ::2].repeat(2, 1).repeat(2, 2))
    complaint = (
        "bits/dim are of 8-bit data as they are, in [-1, 1], which this run's x0 is not "
        "(evaluate leaves them out with config.evaluation.bits_per_dim=0)"
    )
    assert_refused(measured, complaint)
    assert_refused(refused, "config.codec: images of 7 x 8 cannot be halved")


def test_a_modality_of_point_sets(copy, follow):
    _, (sampled, *wrong, report) = follow("modality")
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
    for answer, complaint in zip(wrong, complaints, strict=True):
        assert_refused(answer, complaint)
    assert report.returncode == 0, report.stderr
