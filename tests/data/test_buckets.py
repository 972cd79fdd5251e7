"""Image folders in several sizes: which bucket an image goes to, and the order of the batches."""

import collections

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.conditioning.conditioner import Prepared
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import buckets, folder
from diffusion_jax.data.pipeline import training_batches
from diffusion_jax.data.spec import Declared

SIZES = ("8x8", "4x12", "12x4")
# (height, width) of the files -> the bucket of the nearest logarithm of height / width. Between a
# square and 1 : 3 lies 1 : 1.73.
FILES = {
    (20, 20): 0, (10, 17): 0, (17, 10): 0, (10, 18): 1, (5, 40): 1, (18, 10): 2, (90, 9): 2,
}  # fmt: skip
COUNTS = (3 * 12, 2 * 12, 2 * 12)


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """What is remembered of files lies in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path):
    """84 images, 12 of each size; all but the size tells which."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(12 * len(FILES)):
        size = list(FILES)[i % len(FILES)]
        pixels = rng.integers(0, 256, size, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def load(root, shape=(8, 8, 1), **settings):
    return folder.folder("all", Declared(shape), str(root), **settings)


def test_an_image_gets_the_bucket_of_the_nearest_proportions(photos):
    source = load(photos, buckets=SIZES)
    expected = [FILES[size] for size in FILES] * 12
    np.testing.assert_array_equal(source.buckets, expected)
    assert "buckets of images: 8 x 8 (36), 4 x 12 (24), 12 x 4 (24)" in source.notes


@pytest.mark.parametrize("resize", ["center_crop", "stretch"])
def test_an_image_in_its_bucket_is_that_of_a_folder_of_this_size(photos, resize):
    source = load(photos, buckets=SIZES, resize=resize)
    of_size = [load(photos, (h, w, 1), resize=resize) for h, w in ((8, 8), (4, 12), (12, 4))]
    for i in range(len(FILES)):
        found = source.bucketed()[i]["image"]
        np.testing.assert_array_equal(found, of_size[FILES[list(FILES)[i]]][i]["image"])
        np.testing.assert_array_equal(source[i]["image"], of_size[0][i]["image"])


def test_every_bucket_has_its_share_at_any_time():
    counts = np.array([600, 210, 0, 90, 3])
    turn = buckets.turns(counts, seed=5)
    share, seen, met = counts / counts.sum(), np.zeros(5, int), []
    for batch in range(2 * 301):  # two rounds of 903 / 3
        bucket, before = turn(batch)
        assert before == seen[bucket]
        seen[bucket] += 1
        met.append(bucket)
        assert np.abs(seen - share * (batch + 1)).max() < 5
    np.testing.assert_array_equal(seen, 2 * counts // 3)
    assert met[:301] != met[301:]
    assert [buckets.turns(counts, seed=5)(batch)[0] for batch in range(602)] == met
    assert [buckets.turns(counts, seed=6)(batch)[0] for batch in range(602)] != met


def keys(batch):
    """The images of a batch, as what is counted."""
    return [image.tobytes() for image in batch["image"]]


def test_a_batch_is_of_one_bucket_and_an_epoch_of_it_has_each_image_once(photos):
    source = load(photos, buckets=SIZES)
    batches, counted = training_batches(source, 12, seed=1), collections.Counter()
    met = []
    for _ in range(21):  # three rounds of 84 / 12, as the counts are 3 : 2 : 2
        batch = next(batches)
        met.append(batch["image"].shape[1:3])
        counted.update(keys(batch))
    assert collections.Counter(met) == {(8, 8): 9, (4, 12): 6, (12, 4): 6}
    sized = source.bucketed()
    assert counted == {sized[i]["image"].tobytes(): 3 for i in range(len(source))}


def test_processes_share_each_batch_and_go_on_where_they_stopped(photos):
    source = load(photos, buckets=SIZES)
    read = lambda *process: training_batches(source, 8, 3, "image", *process)
    whole, parts = read(), [read(number, 2) for number in range(2)]
    for step in range(10):
        expected, found = next(whole), [next(part) for part in parts]
        together = np.concatenate([part["image"] for part in found])
        np.testing.assert_array_equal(together, expected["image"])
        if step == 4:
            state = whole.get_state()
    again = read()
    again.set_state(state)
    for _ in range(5):
        last = next(again)
    np.testing.assert_array_equal(last["image"], expected["image"])


def test_one_bucket_of_the_datas_size_changes_nothing(photos):
    plain, one = (
        training_batches(load(photos, **kept), 8, 2, "image")
        for kept in ({}, {"buckets": ("8x8",)})
    )
    for _ in range(12):
        np.testing.assert_array_equal(next(plain)["image"], next(one)["image"])


def test_what_conditioners_add_is_there_in_buckets(photos):
    mean = lambda example: {"mean": example["image"].mean()}
    source = Prepared(load(photos, buckets=SIZES), mean)
    batch = next(training_batches(source, 4, seed=0))
    np.testing.assert_allclose(batch["mean"], batch["image"].mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buckets": ("64",)}, "a bucket is height x width, as 48x80, not '64'"),
        ({"buckets": ("8x0",)}, "a bucket is height x width, as 48x80, not '8x0'"),
        ({"buckets": ("8x8", "8x8")}, "no bucket may be named twice, as in 8x8,8x8"),
        ({"buckets": ("8x8",), "cache": True}, "buckets need resize=.* and cache=false"),
        ({"buckets": ("8x8",), "resize": "none"}, "buckets need resize=.* and cache=false"),
    ],
)
def test_buckets_that_cannot_be(photos, settings, message):
    with pytest.raises((UserError, ValueError), match=message):
        load(photos, **settings)
