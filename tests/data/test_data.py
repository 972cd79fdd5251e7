import json
import pathlib
import subprocess
import sys
import tomllib
import types

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import pipeline, sources
from diffusion_jax.data.spec import Declared, spec_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "tensorflow_datasets"


class Numbers:
    """A source whose image i is filled with i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return {"image": np.full((2, 2, 1), i, np.uint8), "label": np.int32(i)}


class Arrow(Numbers):
    """A source of one image, dark at the left."""

    def __getitem__(self, i):
        return {"image": np.array([[0, 1]], np.uint8)[..., None], "label": np.int32(i)}


def labels(batches, count):
    return np.concatenate([next(batches)["label"] for _ in range(count)])


def test_digits_are_scikit_learns_without_one_in_both_splits():
    train, test = sources.digits("train"), sources.digits("test")
    assert (len(train), len(test)) == (1617, 180)
    pixels, target = load_digits(return_X_y=True)
    np.testing.assert_allclose(test[3]["image"].reshape(-1) / 255, pixels[30] / 16, atol=0.5 / 255)
    assert test[3]["label"] == target[30]
    together = np.concatenate([train.images, test.images]).reshape(1797, -1).astype(float)
    np.testing.assert_allclose(
        np.sort(together.sum(1)), np.sort(np.round(pixels * 255 / 16).sum(1))
    )


def test_sources_yield_the_means_of_squares_of_pixels():
    whole, halved = sources.digits("test"), sources.digits("test", average=2)
    squares = whole.images.astype(float).reshape(180, 4, 2, 4, 2, 1)
    np.testing.assert_array_equal(halved.images, np.round(squares.mean(axis=(2, 4))))
    assert halved[3]["image"].dtype == np.uint8 and halved[3]["label"] == whole[3]["label"]
    with pytest.raises(UserError, match="images of 8 x 8 have no means of 3 x 3 pixels"):
        sources.digits("test", average=3)
    example = {"image": np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "label": 1}
    found = sources.Tfds([example], ["a", "b"], {"test": 1}, average=4)[0]
    np.testing.assert_array_equal(found["image"], [[[22, 24, 24]]])  # 22.5, 23.5 and 24.5, to even
    assert found["image"].dtype == np.uint8 and found["label"] == 1


def test_every_epoch_has_every_example_once_in_a_new_order():
    batches = pipeline.training_batches(Numbers(12), 4, seed=0)
    first, second = labels(batches, 3), labels(batches, 3)
    np.testing.assert_array_equal(np.sort(first), np.arange(12))
    np.testing.assert_array_equal(np.sort(second), np.arange(12))
    assert (first != second).any()


READER = """
import json, sys
import numpy as np
from diffusion_jax.data import pipeline

class Numbers:
    def __len__(self): return 1000
    def __getitem__(self, i): return {"label": np.int32(i)}

process, processes, batch_size = map(int, sys.argv[1:])
shard = (process, processes)
begin = lambda: pipeline.training_batches(Numbers(), batch_size, 5, 'image', *shard, epochs=2)
pipeline.Flip.random_map = lambda self, element, rng: element  # there is nothing to mirror
batches = begin()
read = [next(batches)["label"].tolist() for _ in range(700 // batch_size)]
state = json.dumps(batches.get_state())
del batches
again = begin()
again.set_state(json.loads(state))
print(json.dumps(read + [batch["label"].tolist() for batch in again]))
"""


def test_real_processes_read_every_example_once_an_epoch_also_after_a_resume():
    """1,000 numbered examples: a batch divides no epoch, 3 processes divide no epoch, and all stop
    in the middle of one."""
    processes, batch_size = 3, 63
    command = lambda process: [
        sys.executable,
        "-c",
        READER,
        *map(str, (process, processes, batch_size)),
    ]
    started = [
        subprocess.Popen(command(p), stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for p in range(processes)
    ]
    parts = [json.loads(process.communicate(timeout=120)[0]) for process in started]
    assert [process.returncode for process in started] == [0] * processes
    for part in parts:
        assert all(len(batch) == batch_size // processes for batch in part[: 2000 // batch_size])
    longest = max(map(len, parts))
    stream = [
        number
        for i in range(longest)
        for part in parts
        for number in (part[i] if i < len(part) else ())
    ]
    np.testing.assert_array_equal(np.sort(stream[:1000]), np.arange(1000))
    np.testing.assert_array_equal(np.sort(stream[1000:]), np.arange(1000))
    assert stream[:1000] != stream[1000:]


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_read_what_one_alone_would_in_its_order(processes):
    """Every part of a batch, flips included, and from the state of another number of processes."""
    begin = lambda *shard: pipeline.training_batches(Arrow(13), 12, 3, "image", *shard)
    alone = begin()
    for _ in range(2):
        next(alone)
    parts = [begin(p, processes) for p in range(processes)]
    for part in parts:
        part.set_state(alone.get_state())
    for _ in range(3):
        whole, shares = next(alone), [next(part) for part in parts]
        for name in ("image", "label"):
            np.testing.assert_array_equal(
                whole[name], np.concatenate([share[name] for share in shares])
            )


@pytest.mark.parametrize("total", [0, 1, 11, 12, 13, 24, 29])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_a_stream_that_ends_is_all_read(total, processes):
    parts = [
        pipeline.training_batches(Numbers(total), 12, 0, "", p, processes, epochs=1)
        for p in range(processes)
    ]
    read = [label for part in parts for batch in part for label in batch["label"]]
    assert sorted(read) == list(range(total))


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="training.batch_size=16 is not divisible by 3 processes"):
        pipeline.training_batches(Numbers(40), 16, 0, "", 0, 3)


def test_the_state_goes_on_in_mid_epoch():
    reference = pipeline.training_batches(Numbers(10), 4, seed=3, flip="image")
    for _ in range(2):
        next(reference)
    state = reference.get_state()
    expected = [next(reference) for _ in range(4)]
    resumed = pipeline.training_batches(Numbers(10), 4, seed=3, flip="image")
    resumed.set_state(state)
    for batch in expected:
        again = next(resumed)
        np.testing.assert_array_equal(batch["image"], again["image"])
        np.testing.assert_array_equal(batch["label"], again["label"])


def test_flip_mirrors_about_half():
    images = np.concatenate(
        [
            next(pipeline.training_batches(Arrow(400), 400, seed=s, flip="image"))["image"]
            for s in range(2)
        ]
    )
    flipped = (images[:, 0, 0, 0] == 1).sum()
    assert 340 < flipped < 460  # 400 of 800, within 4.2 standard deviations
    assert (images.sum((1, 2, 3)) == 1).all()


def test_a_flip_of_what_is_no_image_is_refused():
    points = [{"points": np.zeros((4, 2), np.float32)}] * 8
    assert next(pipeline.training_batches(points, 4, seed=0))["points"].shape == (4, 4, 2)
    with pytest.raises(
        UserError, match="config.data.flip mirrors images, which 'image' holds none of"
    ):
        next(pipeline.training_batches(points, 4, seed=0, flip="image"))
    with pytest.raises(UserError, match="which 'points' holds none of"):
        next(pipeline.training_batches(points, 4, seed=0, flip="points"))


def test_a_source_that_is_not_what_the_experiment_says_is_refused():
    source = sources.digits("train")
    sources.check(source, Declared((8, 8, 1), 10), "train", "digits")
    with pytest.raises(UserError, match=r"images of shape \(8, 8, 1\), .* is \(32, 32, 3\)"):
        sources.check(source, Declared((32, 32, 3), 10), "train", "digits")
    with pytest.raises(UserError, match="10 classes, but config.data.num_classes is 3"):
        sources.check(source, Declared((8, 8, 1), 3), "train", "digits")
    with pytest.raises(UserError, match="digits has no 'points', only image, label"):
        sources.check(source, Declared((8, 8, 1), 10), "train", "digits", entry="points")
    with pytest.raises(UserError, match="the split 'train' of digits is empty"):
        sources.check([], Declared((8, 8, 1), 10), "train", "digits")


class Ranged(list):
    """Examples whose floats have a range."""

    range, num_classes = (0.0, 1.0), 0


def test_a_source_without_images_of_8_bits_or_of_a_range_is_refused():
    declared = Declared((8, 8, 1), 0)
    floats = {"image": np.zeros((8, 8, 1), np.float32)}
    sources.check(Ranged([floats]), declared, "train", "floats")
    for example, complaint in (
        (floats, "odd has images of float32; they must be of 8 bits"),
        ({"image": np.zeros((8, 8, 1), np.int16)}, "odd has images of int16"),
        ({"label": 0}, "odd has no 'image', only label"),
    ):
        with pytest.raises(UserError, match=complaint):
            sources.check([example], declared, "train", "odd")


def test_the_spec_of_a_source_is_that_of_its_examples():
    assert spec_of(sources.digits("test")) == {
        "image": ((8, 8, 1), np.uint8),
        "label": ((), np.int32),
    }


def test_a_tfds_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="tfds cannot read 'no_such_set'"):
        sources.tfds("train", "no_such_set", str(tmp_path))
    with pytest.raises(UserError, match="config.data.source.name is empty"):
        sources.tfds("train")


def test_a_tfds_set_that_cannot_be_prepared_names_the_extra_that_can():
    class Builder:
        info = types.SimpleNamespace(full_name="cifar10/3.0.2")

        def download_and_prepare(self):
            raise ImportError("No module named 'tensorflow'")

    with pytest.raises(UserError, match=r"cifar10/3.0.2 .* pip install -e '\.\[tfds-prepare\]'$"):
        sources.prepare(Builder(), "")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["tfds-prepare"] == ["tensorflow", "importlib_resources"]


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs the prepared CIFAR-10 of ../shared/data")
def test_cifar10_is_read_by_tfds_without_tensorflow():
    source = sources.tfds("test", "cifar10", str(CIFAR))
    sources.check(source, Declared((32, 32, 3), 10), "test", "cifar10")
    assert (source.splits, source.class_names[3]) == ({"train": 50_000, "test": 10_000}, "cat")
    assert len(source) == 10_000
    assert {int(source[i]["label"]) for i in range(0, 10_000, 100)} == set(range(10))
    batch = next(pipeline.training_batches(source, 8, seed=0))
    assert batch["image"].shape == (8, 32, 32, 3)
    assert batch["image"].dtype == np.uint8
    assert "tensorflow" not in sys.modules
