"""Features that are kept: made once, by one process at a time, gone on with where they stopped."""

import subprocess
import sys

import numpy as np
import pytest
from tiny import ROOT

from diffusion_jax.evaluation import extract, features
from diffusion_jax.evaluation.extract import Extracted


class Stop(Exception):
    pass


def test_what_is_stopped_goes_on(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 1)).astype(np.uint8)
    function = features.load("pixels")
    calls = []

    def images_of(index, stop_at=None):
        calls.append(index.tolist())
        if stop_at is not None and index[0] >= stop_at:
            raise Stop
        return images[index]

    whole = extract.extract(
        Extracted(tmp_path / "whole", {}, (4, 4, 1), 12), function, images_of, 23, 5, ""
    )
    place = Extracted(tmp_path / "cut", {}, (4, 4, 1), 12)
    with pytest.raises(Stop):
        extract.extract(place, function, lambda index: images_of(index, 10), 23, 5, "")
    with (tmp_path / "cut" / "features.f4").open("ab") as file:
        file.write(b"half a row")
    with (tmp_path / "cut" / "images.u1").open("ab") as file:
        file.write(b"\0" * 16)  # of an image whose features were never written
    calls.clear()
    cut = extract.extract(
        Extracted(tmp_path / "cut", {}, (4, 4, 1), 12), function, images_of, 23, 5, ""
    )
    assert min(map(min, calls)) == 10
    for name in ("features.f4", "images.u1"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    np.testing.assert_array_equal(
        np.asarray(cut.get("features", 23)), images.reshape(23, -1) / np.float32(255)
    )
    np.testing.assert_array_equal(cut.images.array(12), images[:12])
    assert whole.get("spatial", 23) is None
    more = extract.extract(
        Extracted(tmp_path / "cut", {}, (4, 4, 1), 20), function, images_of, 23, 5, ""
    )
    np.testing.assert_array_equal(more.images.array(20), images[:20])


CONCURRENT = """
import pathlib, sys, time
import numpy as np
from diffusion_jax.evaluation import extract, features

def images_of(index):
    time.sleep(0.05)
    return np.broadcast_to(index.astype(np.uint8)[:, None, None, None], (len(index), 2, 2, 1))

pixels = features.load("pixels")
print("ready", flush=True)
sys.stdin.readline()
place = extract.Extracted(pathlib.Path(sys.argv[1]), {}, (2, 2, 1))
extract.extract(place, pixels, images_of, 40, 2, "")
"""


def test_two_processes_at_once_make_each_row_once(tmp_path):
    command = [sys.executable, "-c", CONCURRENT, str(tmp_path / "set")]
    options = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "text": True,
        "cwd": ROOT,
    }
    both = [subprocess.Popen(command, **options) for _ in range(2)]
    for process in both:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = "".join(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [
        0,
        0,
    ] and "waiting for another process" in said
    rows = np.fromfile(tmp_path / "set" / "features.f4", "<f4").reshape(-1, 4)
    np.testing.assert_allclose(rows[:, 0] * 255, np.arange(40), atol=1e-4)


def test_rows_of_no_known_layout_are_made_again(tmp_path):
    """layout.json was lost: what the rows before are of, nobody knows."""
    (tmp_path / "features.f4").write_bytes(bytes(4 * 16 * 3))
    white = lambda index: np.full((len(index), 2, 2, 1), 255, np.uint8)
    place = extract.extract(
        Extracted(tmp_path, {}, (2, 2, 1)), features.load("pixels"), white, 5, 5, ""
    )
    np.testing.assert_array_equal(np.asarray(place.get("features", 5)), 1.0)
    assert (tmp_path / "features.f4").stat().st_size == 5 * 4 * 4
