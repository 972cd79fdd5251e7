"""The command `evaluate` of any two sets of images, whoever made them."""

import json

import numpy as np
import pytest
from frechet_by_hand import flat, gaussians
from PIL import Image
from tiny import ROOT, evaluate_run, write_pictures

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources


def test_any_two_sets_of_images(tmp_path, capsys):
    digits = sources.digits("train").images
    left, right = write_pictures(tmp_path / "left", digits[:60]), tmp_path / "right.npz"
    np.savez(right, images=digits[100:180])
    shape = ["--config", ROOT / "experiments" / "digits.py"]
    evaluate_run(tmp_path / "out", "--images", left, "--against", right, *shape)
    (path,) = (tmp_path / "out" / "evaluations").glob("left*.json")
    found = json.loads(path.read_text())
    np.testing.assert_allclose(
        found["fid"]["value"], gaussians(flat(digits[:60]), flat(digits[100:180])), rtol=1e-5
    )
    assert found["protocol"]["images"]["count"] == 60 and found["protocol"]["reference_count"] == 80
    assert str(tmp_path) not in path.read_text()

    np.savez(tmp_path / "copy.npz", digits[:60])  # without names, as ADM writes it
    evaluate_run(tmp_path / "same", "--images", left, "--against", tmp_path / "copy.npz", *shape)
    (path,) = (tmp_path / "same" / "evaluations").glob("left*.json")
    same = json.loads(path.read_text())
    assert same["fid"]["value"] < 1e-6 and (
        same["precision"],
        same["recall"],
        same["coverage"],
    ) == (1.0, 1.0, 1.0)

    x = flat(digits[100:180])
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    evaluate_run(
        tmp_path / "theirs", "--images", "test", "--against", tmp_path / "theirs.npz", *shape
    )
    (path,) = (tmp_path / "theirs" / "evaluations").glob("digits-test*.json")
    theirs = json.loads(path.read_text())
    np.testing.assert_allclose(
        theirs["fid"]["value"], gaussians(flat(sources.digits("test").images), x), rtol=1e-5
    )
    assert "kid" not in theirs and theirs["protocol"]["reference_count"] == 0
    assert "an unknown number" in capsys.readouterr().out


def test_images_as_they_are_without_a_config(tmp_path):
    """A folder's own size, in colour."""
    rng = np.random.default_rng(2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).save(
                tmp_path / name / f"{i}.png"
            )
    evaluate_run(tmp_path / "out", "--images", tmp_path / "a", "--against", tmp_path / "b")
    (path,) = (tmp_path / "out" / "evaluations").glob("*.json")
    assert json.loads(path.read_text())["protocol"]["images"]["shape"] == [5, 6, 3]
    Image.new("RGB", (9, 9)).save(tmp_path / "b" / "other.png")
    with pytest.raises(
        UserError, match="2 sizes, from 5 x 6 to 9 x 9; --config.data.shape=64,64,3 says"
    ):
        evaluate_run(tmp_path / "out", "--images", tmp_path / "a", "--against", tmp_path / "b")
