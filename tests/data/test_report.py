"""What a source holds, in numbers."""

import pathlib

import numpy as np
import pytest

from diffusion_jax.data import arrays, report

POINTS = np.random.default_rng(0).normal(size=(40, 5, 2))


def test_what_is_no_image_is_measured_by_its_last_axis(tmp_path):
    np.savez(tmp_path / "a.npz", points=POINTS)
    source = arrays.arrays("all", str(tmp_path / "a.npz"))
    found = report.measure(source, "points")
    assert found["mean"] == {"values": pytest.approx(POINTS.mean((0, 1)))}
    assert found["deviation"] == {"values": pytest.approx(POINTS.std((0, 1)))}
    assert (found["measured"], found["sizes"]["least"]) == (40, (5, 2))
    assert report.measure(source, "image") == {}
    split = report.split_report(source, "all")
    assert split == {"split": "all", "examples": 40, "labels": {}, "labels_of": 0}
    whole = found | {"train": split, "splits": {}, "notes": ["a note"], "problems": ["a fault"]}
    lines = report.summary(whole, pathlib.Path("run")).splitlines()
    assert lines[:2] == ["all: 40 examples, 0 labels", "sizes: 5 x 2 (40)"]
    assert lines[2].startswith("values: mean ")
    assert lines[3:] == ["note: a note", "problem: a fault", "data: run"]


def test_only_some_of_many_examples_are_measured(monkeypatch):
    monkeypatch.setattr(report, "MEASURED", 3)
    images = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 1), np.uint8)
    found = report.measure(arrays.Arrays(images))
    assert found["measured"] == 3
    assert found["mean"] == {"0..255": [4.0], "-1..1": [pytest.approx(4 / 127.5 - 1)]}
