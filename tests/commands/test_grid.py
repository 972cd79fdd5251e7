"""The command `grid`: settings that draw, and one line for bad input."""

import json

import numpy as np
import pytest
from tiny import main_run

from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.build import build, make_grid
from diffusion_jax.runs.settings import load, override


def test_the_settings_that_are_printed_are_levels_of_the_run(undisturbed, capsys):
    workdir = undisturbed[1]
    capsys.readouterr()
    main_run("grid", "--workdir", workdir, "--num_steps=4", "--fine=12", "--num=6")
    *_, errors, line = capsys.readouterr().out.splitlines()
    config = load(workdir / "config.json")
    changes = dict(word.removeprefix("--config.").split("=") for word in line.split())
    override(config, changes)
    assert config.sampling.sampler.entry == "ddim"
    levels = make_grid(config, build(config).schedule)
    assert len(levels.t) == 4
    assert levels.t[0] == 19  # where every chain of this table begins
    record = json.loads((workdir / "grids" / "4.json").read_text())
    np.testing.assert_array_equal([float(t) for t in record["steps"].split(",")], levels.t)
    assert record["errors"]["chosen"] <= record["errors"]["even"]
    assert errors.startswith("local errors add up to")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--num_steps=0",), "--num_steps must be 1 to --fine=100 less one, not 0"),
        (("--num_steps=5", "--fine=5"), "--num_steps must be 1 to --fine=5 less one, not 5"),
        (("--num=0",), "--num must be at least 1 sample"),
        (("--fine=21",), "21 sampling steps asked of a table of 20"),
    ],
)
def test_bad_input_is_one_line(undisturbed, flags, words):
    with pytest.raises(UserError, match=words):
        main_run("grid", "--workdir", undisturbed[1], *flags)
