"""Images as a modality: what is kept and shown of samples."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.modalities import MODALITIES, images, pictures

NUMBERED = np.arange(256, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 1), np.uint8)


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def cells(monkeypatch):
    """data, classes -> the number of each image of the grid of NUMBERED, which is not enlarged."""
    monkeypatch.setattr(pictures, "enlarge", lambda picture: picture)
    return lambda data, classes=0: images().preview(data, classes)[1::5, 1::5, 0].astype(int)


def test_images_are_a_modality_that_equals_itself():
    assert MODALITIES["images"] is images
    assert images() == images() and hash(images()) == hash(images())
    assert (images().entry, images().dtype, images().features) == ("image", np.uint8, "inception")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1, 1), (0, 8, 1), ()])
def test_what_is_no_shape_of_an_image_is_refused(shape):
    images().check((8, 4, 2))
    with pytest.raises(ValueError, match="images have a height, a width and channels, not "):
        images().check(shape)


@pytest.mark.parametrize("labels", [None, np.arange(3, dtype=np.int32)])
def test_bytes_are_kept_as_they_are(tmp_path, labels):
    images().save(tmp_path, NUMBERED[7:10], labels)
    kept = arrays(tmp_path / "samples.npz")
    assert set(kept) == ({"images"} if labels is None else {"images", "labels"})
    np.testing.assert_array_equal(kept["images"], NUMBERED[7:10])
    assert kept["images"].dtype == np.uint8
    for i in range(3):
        assert (pixels(tmp_path / f"{i:05d}.png") == 7 + i).all()
    assert len(list(tmp_path.iterdir())) == 4


def test_floats_are_kept_in_their_units_and_shown_by_their_range(tmp_path):
    data = np.array([-3.0, 1.0, 5.0, 6.0], np.float32)[:, None, None, None] * np.ones(
        (2, 2, 3), np.float32
    )
    images().save(tmp_path, data, None, (-3.0, 5.0))
    kept = arrays(tmp_path / "samples.npz")["images"]
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept, data)
    gray = [int(pixels(tmp_path / f"{i:05d}.png")[0, 0, 0]) for i in range(4)]
    assert gray == [0, 128, 255, 255]  # what lies beyond the range is clipped here alone
    assert pictures.shown(data).reshape(4, -1)[:, 0].tolist() == [0, 113, 227, 255]  # of [-3, 6]
    assert (pictures.shown(np.zeros((1, 2, 2, 1))) == 0).all()


def test_a_few_classes_have_a_row_each(cells):
    expected = np.arange(20).reshape(2, 10).T
    np.testing.assert_array_equal(cells(NUMBERED[:20], 10), expected)
    np.testing.assert_array_equal(cells(NUMBERED[:16]), np.arange(16).reshape(4, 4).T)


@pytest.mark.parametrize("each", [1, 2])
def test_many_classes_are_no_strip(cells, each):
    """128 classes: a row a class would be 128 images high and one or two wide."""
    picture = cells(NUMBERED[: 128 * each], 128)
    rows, columns = picture.shape
    assert max(rows, columns) <= 2 * min(rows, columns)
    assert columns % each == 0  # no class is on two rows
    order = picture.reshape(-1)
    expected = np.arange(128 * each).reshape(each, 128).T.reshape(-1)  # class by class
    np.testing.assert_array_equal(order[: 128 * each], expected)
    assert (order[128 * each :] == pictures.DARK).all()


def test_classes_with_fewer_samples_leave_a_dark_place(cells):
    picture = cells(NUMBERED[:130], 128).reshape(-1)
    assert picture[:6].tolist() == [0, 128, 1, 129, 2, pictures.DARK]


def test_a_grid_of_tiny_images_is_enlarged():
    assert min(images().preview(NUMBERED[:128], 128).shape[:2]) > 200
