"""The source `arrays`: bytes, floats and others of a NumPy file."""

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import arrays as module
from diffusion_jax.data import pipeline, sources
from diffusion_jax.data.spec import spec_of

GRAY = (8, 8, 1)


def values(source):
    """The mean of every image."""
    return [round(float(source[i]["image"].mean())) for i in range(len(source))]


IMAGES = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones(GRAY, np.uint8)


@pytest.mark.parametrize(
    "names", [("images", "labels"), ("image", "label"), ("arr_0", "arr_1"), ("x", None)]
)
def test_arrays_of_an_npz(tmp_path, names):
    labels = {names[1]: np.arange(40)[:, None] % 3} if names[1] else {}
    np.savez(tmp_path / "a.npz", **{names[0]: IMAGES}, **labels)
    train, test, everything = (
        sources.arrays(split, str(tmp_path / "a.npz")) for split in ("train", "test", "all")
    )
    assert (values(everything), values(test)) == (list(range(40)), [0, 20])
    assert sorted(values(train) + values(test)) == list(range(40))
    assert train.num_classes == (3 if labels else 0)
    assert [int(test[i]["label"]) for i in range(2)] == ([0, 2] if labels else [0, 0])


def test_arrays_of_an_npy_are_mapped(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES[..., 0])
    source = sources.arrays("train", str(tmp_path / "a.npy"))
    base = source.images
    while not isinstance(base, np.memmap):
        base = base.base
    assert source[0]["image"].shape == GRAY
    assert values(source)[:3] == [1, 2, 3]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.astype(np.int16)}, "must be uint8 or floats"),
        ({"images": IMAGES[0, :, :, 0]}, "must be uint8 or floats"),
        ({"images": IMAGES, "labels": np.arange(39)}, "must be 40 whole numbers"),
        ({"images": IMAGES, "labels": np.arange(40) - 1}, "must be 40 whole numbers"),
        ({"images": IMAGES, "labels": np.full(40, "cat")}, "must be 40 whole numbers"),
        ({"images": np.array([None])}, "holds no arrays: it must be .npz or .npy"),
        ({}, "holds no arrays"),
        (b"text", "holds no arrays: it must be .npz or .npy"),
        (None, "holds no arrays: No such file"),
    ],
)
def test_arrays_that_are_none_are_refused(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif arrays:
        path.write_bytes(arrays)
    with pytest.raises(UserError, match=message) as error:
        sources.arrays("train", str(path))
    assert "\n" not in str(error.value)


def test_arrays_have_no_other_split(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(UserError, match="has the splits all, train, test, not 'val'"):
        sources.arrays("val", str(tmp_path / "a.npy"))


MEASURED = np.random.default_rng(0).uniform(-3.0, 5.0, (40, 4, 4, 2))
MEASURED[20, 1, 1, 0], MEASURED[3, 0, 0, 1] = -2.9999, 4.9999  # one of each in each split


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return str(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_stay_in_their_units_and_all_splits_have_the_range_of_all_images(tmp_path, dtype):
    images = MEASURED.astype(dtype)
    np.save(tmp_path / "a.npy", images)
    for path in (str(tmp_path / "a.npy"), saved(tmp_path, images=images)):
        for split in ("train", "test", "all"):
            source = sources.arrays(split, path)
            kept = np.stack([source[i]["image"] for i in range(len(source))])
            assert kept.dtype == np.float32
            np.testing.assert_array_equal(kept, images[source.chosen].astype(np.float32))
            assert source.range == (
                float(np.float32(images.min())),
                float(np.float32(images.max())),
            )
            assert sources.arrays(split, path, (-4.0, 8.0)).range == (-4.0, 8.0)
    assert sources.arrays("all", saved(tmp_path, images=IMAGES)).range is None


def test_a_range_that_float32_rounds_outwards_holds_its_ends(tmp_path):
    images = np.full((2, 2, 2), 0.1, np.float32)  # 0.10000000149
    images[1] = -0.7  # -0.699999988
    assert sources.arrays("all", saved(tmp_path, images=images), (-0.7, 0.1)).range == (-0.7, 0.1)


@pytest.mark.parametrize(
    ("wrong", "range", "message"),
    [
        ({(0, 0, 0, 0): np.nan, (7, 1, 0, 0): np.inf}, (), "2 of 1,280 values .* are not finite"),
        ({(0, 0, 0, 0): 1e39}, (), "1 of 1,280 values .* are not finite"),
        (
            {},
            (-2.0, 4.0),
            r"of 1,280 values .* outside of .*source.range=-2,4: theirs is -2.9999,4.9999",
        ),
        ({...: 1.5}, (), "all values of the images of .* are 1.5, which is no range"),
    ],
)
def test_floats_that_have_no_range_are_refused(tmp_path, wrong, range, message):
    images = MEASURED.copy()
    for where, value in wrong.items():
        images[where] = value
    with pytest.raises(UserError, match=message) as error:
        sources.arrays("train", saved(tmp_path, images=images), range)
    assert "\n" not in str(error.value)
    outside = int(((images < -2) | (images > 4)).sum())
    assert not range or str(error.value).startswith(f"{outside} of ")


@pytest.mark.parametrize("range", [(1.0,), (2.0, 1.0), (1.0, 1.0), (0.0, np.inf), (1.0, 2.0, 3.0)])
def test_a_range_is_two_numbers(tmp_path, range):
    with pytest.raises(ValueError, match="range must be two numbers, the lesser first, not "):
        sources.arrays("train", saved(tmp_path, images=MEASURED), range)


def test_bytes_take_no_range(tmp_path):
    with pytest.raises(UserError, match="range is of float images, but .* has images of uint8"):
        sources.arrays("train", saved(tmp_path, images=IMAGES), (0.0, 1.0))


def test_the_range_of_a_large_file_is_found_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 70)  # two rows and a bit
    path = saved(tmp_path, images=MEASURED)
    low, high = sources.arrays("all", path).range
    assert (low, high) == (np.float32(MEASURED.min()), np.float32(MEASURED.max()))


def test_every_array_of_as_many_rows_is_yielded_under_its_name(tmp_path):
    text, points = np.arange(120).reshape(40, 3), np.random.default_rng(1).normal(size=(40, 5, 2))
    path = saved(
        tmp_path,
        images=IMAGES,
        text=text,
        points=points,
        flag=np.arange(40) % 2 == 0,
        mu=np.zeros(7),
        scale=np.float64(3),
        words=np.full(40, "cat"),
        anything=np.array([None] * 40),
    )
    source = sources.arrays("test", path)
    assert spec_of(source) == {
        "image": (GRAY, np.uint8),
        "label": ((), np.int32),
        "text": ((3,), np.int32),
        "points": ((5, 2), np.float32),
        "flag": ((), np.bool),
    }
    np.testing.assert_array_equal(source[1]["text"], text[20])
    np.testing.assert_array_equal(source[1]["points"], points[20].astype(np.float32))
    (note,) = source.notes
    assert note.startswith(
        "left out, since they are not numbers of 40 examples: anything (objects)"
    )
    for name in ("mu (float64 (7,))", "scale (float64 ())", "words (<U3 (40,))"):
        assert name in note
    batch = next(pipeline.training_batches(source, 2, seed=0, flip="image"))
    assert batch["points"].shape == (2, 5, 2)


def test_a_file_without_images_has_its_other_arrays(tmp_path):
    points = np.random.default_rng(1).normal(size=(40, 5, 2))
    source = sources.arrays("all", saved(tmp_path, points=points))
    assert (source.num_classes, source.range, len(source)) == (0, None, 40)
    assert spec_of(source) == {"points": ((5, 2), np.float32)}
    sources.check(
        source, sources.Declared((5, 2), 0, dtype="float32"), "all", "points", entry="points"
    )
    labelled = sources.arrays("all", saved(tmp_path, points=points, labels=np.arange(40) % 3))
    assert (labelled.num_classes, int(labelled[5]["label"])) == (3, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.full((40, 2), np.nan)}, "80 of 80 values of 'points' .* are not finite"),
        ({"text": np.full((40, 2), 2**31)}, "'text' .* has whole numbers beyond 32 bits"),
        ({"words": np.full(40, "cat")}, "holds no array of numbers with a row for each example"),
    ],
)
def test_other_arrays_that_no_network_takes_are_refused(tmp_path, arrays, message):
    with pytest.raises(UserError, match=message):
        sources.arrays("all", saved(tmp_path, **arrays))
