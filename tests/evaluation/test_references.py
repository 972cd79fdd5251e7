"""Sets of images that others are compared with: kept statistics, and files that are none."""

import numpy as np
import pytest
from PIL import Image
from tiny import write_pictures

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources
from diffusion_jax.evaluation import features, frechet, references
from diffusion_jax.evaluation.references import RunData


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


DIGITS = RunData((8, 8, 1), "digits", sources.digits)


def of(name, data=DIGITS, said=None):
    """The reference of that name by its pixels."""
    says = [] if said is None else [said.append]
    return references.reference(str(name), data, features.load("pixels"), 4, *says)


def test_the_statistics_of_a_reference_are_computed_once_and_again_when_an_image_changes(tmp_path):
    folder = write_pictures(tmp_path / "set", sources.digits("train").images[:15])
    said = []
    first, again = of(folder, said=said), of(folder, said=said)
    assert len(said) == 1
    np.testing.assert_array_equal(first.statistics.covariance, again.statistics.covariance)
    np.testing.assert_array_equal(first.rows, again.rows)
    record = first.statistics.record
    assert (record["images"], record["count"], record["features"]) == ("set", 15, "pixels")
    Image.new("L", (8, 8), 9).save(folder / "3.png")
    assert of(folder, said=said).statistics.mean[0] != first.statistics.mean[0]
    path = said[0].removeprefix("reference: ")
    assert of(path).statistics.record == record


def damaged(folder):
    """name -> a file that is no reference for 8 x 8 digits by their pixels, and what is said of
    it."""
    images, eye, nan = sources.digits("train").images[:20], np.eye(64), np.full(64, np.nan)
    np.savez(folder / "empty.npz", images=images[:0])
    np.savez(folder / "whole.npz", images=images)
    (folder / "cut.npz").write_bytes((folder / "whole.npz").read_bytes()[:500])
    (folder / "nothing.npz").write_bytes(b"")
    np.savez(folder / "nan.npz", mu=nan, sigma=eye)
    np.savez(folder / "negative.npz", mu=np.zeros(64), sigma=-eye)
    np.savez(folder / "skew.npz", mu=np.zeros(64), sigma=np.triu(np.ones((64, 64))))
    other = features.load("pixels").record | {"weights": "another network's"}
    frechet.save(
        folder / "other.npz", frechet.Statistics(np.zeros(64), eye, 20, other)
    )  # 64 features, too
    return {
        "empty": "holds no images",
        "cut": "holds no arrays",
        "nothing": "holds no arrays",
        "nan": "not all its numbers are finite",
        "negative": "its covariance is none",
        "skew": "its covariance is none",
        "other": f"statistics of different weights don't compare: {other['weights']} and none",
    }


# numpy leaves a damaged file open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_that_is_no_reference_is_named(tmp_path):
    for name, message in damaged(tmp_path).items():
        with pytest.raises(UserError, match=message):
            of(tmp_path / f"{name}.npz")
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, sources.digits("train").images[:20])  # the name of an archive
    assert of(tmp_path / "array.npz").statistics.count == 20


def test_others_statistics_are_known_by_their_bytes(tmp_path):
    records = []
    for i in range(2):
        np.savez(tmp_path / "theirs.npz", mu=np.full(64, i), sigma=np.eye(64))
        records.append(of(tmp_path / "theirs.npz").statistics.record)
    assert records[0]["statistics"] == "theirs.npz" and records[0] != records[1]


def test_images_that_are_no_bytes_are_no_set_of_images(tmp_path):
    np.savez(tmp_path / "floats.npz", images=np.linspace(0, 1, 20 * 64).reshape(20, 8, 8, 1))
    with pytest.raises(UserError, match="floats.npz holds images of float"):
        of(tmp_path / "floats.npz")
    np.savez(tmp_path / "labels.npz", labels=np.arange(20))
    with pytest.raises(UserError, match="labels.npz holds no images"):
        of(tmp_path / "labels.npz")
