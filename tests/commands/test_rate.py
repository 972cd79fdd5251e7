"""The command `rate`."""

import json

import pytest
from tiny import main_run, write_pictures

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources


def test_two_sets_are_rated_and_counted(tmp_path, capsys):
    digits = sources.digits("train").images
    left, right = (
        write_pictures(tmp_path / "left", digits[:30]),
        write_pictures(tmp_path / "right", digits[100:120]),
    )
    command = ("rate", "--workdir", tmp_path / "out")
    with pytest.raises(UserError, match="--images and --against name the two sets"):
        main_run(*command, "--images", left)
    main_run(*command, "--images", left, "--against", right)
    page = tmp_path / "out" / "rating" / "index.html"
    assert f"page: {page}" in capsys.readouterr().out
    assert "left/" not in page.read_text()
    key = json.loads((page.parent / "key.json").read_text())
    answers = [
        "left" if first == 0 else "right" for first in key["left"]
    ]  # always for the first set
    ratings = {"page": key["page"], "rater": "", "token": "1f", "saved": 1.0, "answers": answers}
    (tmp_path / "ratings.json").write_text(json.dumps(ratings))
    main_run(*command, "--ratings", tmp_path / "ratings.json")
    found = json.loads((page.parent / "tally.json").read_text())
    assert found["win_rate"] == 1.0 and found["wins"][str(left)] == len(answers) == 20
