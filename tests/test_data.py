import pathlib
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.data import pipeline, sources
from diffusion_jax.errors import UserError

CIFAR = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "tensorflow_datasets"


class Numbers:
    """A source whose image i is filled with i."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return {"image": np.full((2, 2, 1), i, np.uint8), "label": np.int32(i)}


def labels(batches, count):
    return np.concatenate([next(batches)["label"] for _ in range(count)])


def test_digits_are_scikit_learns_without_one_in_both_splits():
    train, test = sources.digits("train"), sources.digits("test")
    assert (len(train), len(test)) == (1617, 180)
    pixels, target = load_digits(return_X_y=True)
    np.testing.assert_allclose(test[3]["image"].reshape(-1) / 255, pixels[30] / 16, atol=0.5 / 255)
    assert test[3]["label"] == target[30]
    together = np.concatenate([train.images, test.images]).reshape(1797, -1).astype(float)
    np.testing.assert_allclose(np.sort(together.sum(1)), np.sort(np.round(pixels * 255 / 16).sum(1)))


def test_every_epoch_has_every_example_once_in_a_new_order():
    batches = pipeline.training_batches(Numbers(12), 4, seed=0)
    first, second = labels(batches, 3), labels(batches, 3)
    np.testing.assert_array_equal(np.sort(first), np.arange(12))
    np.testing.assert_array_equal(np.sort(second), np.arange(12))
    assert (first != second).any()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_out_an_epoch(processes):
    parts = [pipeline.training_batches(Numbers(13), 3 * processes, 0, False, p, processes) for p in range(processes)]
    # `processes` epochs of 13 examples are 13 for each process; read them with one batch more, and count the first 13
    seen = np.concatenate([labels(part, 5)[:13] for part in parts])
    np.testing.assert_array_equal(np.sort(seen), np.repeat(np.arange(13), processes))


def test_the_state_goes_on_in_mid_epoch():
    reference = pipeline.training_batches(Numbers(10), 4, seed=3, flip=True)
    for _ in range(2):
        next(reference)
    state = reference.get_state()
    expected = [next(reference) for _ in range(4)]
    resumed = pipeline.training_batches(Numbers(10), 4, seed=3, flip=True)
    resumed.set_state(state)
    for batch in expected:
        again = next(resumed)
        np.testing.assert_array_equal(batch["image"], again["image"])
        np.testing.assert_array_equal(batch["label"], again["label"])


def test_flip_mirrors_about_half():
    class Arrow(Numbers):
        def __getitem__(self, i):
            return {"image": np.array([[0, 1]], np.uint8)[..., None], "label": np.int32(i)}

    images = np.concatenate([next(pipeline.training_batches(Arrow(400), 400, seed=s, flip=True))["image"] for s in range(2)])
    flipped = (images[:, 0, 0, 0] == 1).sum()
    assert 340 < flipped < 460  # 400 of 800, within 4.2 standard deviations
    assert (images.sum((1, 2, 3)) == 1).all()


def test_a_source_that_is_not_what_the_experiment_says_is_refused():
    with pytest.raises(UserError, match="images of shape"):
        sources.load("digits", "train", "", "", (32, 32, 3), 10)
    with pytest.raises(UserError, match="10 classes, but data.num_classes is 3"):
        sources.load("digits", "test", "", "", (8, 8, 1), 3)


def test_a_source_without_8_bit_images_is_refused(monkeypatch):
    for image in (np.zeros((8, 8, 1), np.float32), None):
        example = {"label": 0} if image is None else {"image": image, "label": 0}
        monkeypatch.setitem(sources.SOURCES, "odd", lambda *args, example=example: [example])
        with pytest.raises(UserError, match="odd has no 8-bit images"):
            sources.load("odd", "train", "", "", (8, 8, 1), 0)


def test_a_tfds_set_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="tfds cannot read 'no_such_set'"):
        sources.tfds("train", "no_such_set", str(tmp_path))


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs the prepared CIFAR-10 of ../shared/data")
def test_cifar10_is_read_by_tfds_without_tensorflow():
    source = sources.load("tfds", "test", "cifar10", str(CIFAR), (32, 32, 3), 10)
    assert len(source) == 10_000
    assert {int(source[i]["label"]) for i in range(0, 10_000, 100)} == set(range(10))
    batch = next(pipeline.training_batches(source, 8, seed=0))
    assert batch["image"].shape == (8, 32, 32, 3)
    assert batch["image"].dtype == np.uint8
    assert "tensorflow" not in sys.modules
