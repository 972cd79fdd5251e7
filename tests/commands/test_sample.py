"""The command `sample`: what it writes, and what a sample depends on."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import main_run, pixels

from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.open import open_run
from diffusion_jax.runs.settings import load


@pytest.fixture
def images(newest):
    """images(workdir, setting, ...): those that `sample` draws with these settings, as ints."""

    def draw(workdir, *settings):
        words = (f"--config.sampling.{setting}" for setting in settings)
        main_run("sample", "--workdir", workdir, *words)
        return tiny.arrays(newest(workdir) / "samples.npz")["images"].astype(int)

    return draw


def test_sample_writes_grid_pictures_array_gif_and_strip(workdir, newest, capsys):
    main_run(
        "sample", "--workdir", workdir, "--config.sampling.gif", "--config.sampling.strip=true"
    )
    folder = newest(workdir)
    assert capsys.readouterr().out == f"samples: {folder}\n"
    arrays = tiny.arrays(folder / "samples.npz")
    assert arrays["images"].shape == (20, 8, 8, 1)
    assert arrays["images"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["labels"], np.arange(20) % 10)
    np.testing.assert_array_equal(pixels(folder / "00013.png"), arrays["images"][13, :, :, 0])
    with Image.open(folder / "chain.gif") as gif:
        assert gif.n_frames == 6  # five levels, and the result
    assert pixels(folder / "chain.png").shape[1] > 100
    grid = pixels(folder / "grid.png")
    times = grid.shape[0] // (10 * 9 + 1)
    np.testing.assert_array_equal(
        grid[::times, ::times][1 + 3 * 9 : 9 + 3 * 9, 10:18], arrays["images"][13, :, :, 0]
    )
    settings = json.loads((folder / "settings.json").read_text())["sampling"]
    assert settings["sampler"]["entry"] == "ancestral" and settings["gif"] is True


def test_a_sample_depends_on_seed_and_number_alone(workdir, images):
    twenty = images(workdir, "num=20")
    again = images(workdir, "num=20", "batch_size=7")
    assert abs(twenty - again).max() <= 1  # a grey level of rounding
    assert abs(twenty[:3] - images(workdir, "num=3")).max() <= 1
    assert abs(twenty - images(workdir, "num=20", "seed=1")).max() > 10
    assert abs(twenty - images(workdir, "num=20", "ema=false")).max() > 1


def test_a_class_can_be_asked_for_and_a_sampler_chosen(workdir, newest):
    main_run(
        "sample", "--workdir", workdir, "--config.sampling.label", "7",
        "--config.sampling.sampler=ddim", "--config.sampling.sampler.eta=0.5",
        "--config.sampling.num=4", "--noconfig.sampling.ema",
    )  # fmt: skip
    folder = newest(workdir)
    assert "ddim-5-raw" in folder.name
    np.testing.assert_array_equal(tiny.arrays(folder / "samples.npz")["labels"], [7] * 4)
    stored = json.loads((folder / "settings.json").read_text())["sampling"]["sampler"]
    assert stored == {"entry": "ddim", "eta": 0.5}


def test_samples_are_guided_by_the_label_or_by_a_weaker_run(workdir, improved, images, newest):
    images(improved, "guidance=3", "num=4")
    assert "-guidance3-" in newest(improved).name
    weak = ("guidance=2", "guide=autoguidance", "num=4")
    # leads nowhere, since it is no weaker
    itself = images(workdir, *weak, f"guide.weak={workdir}")
    assert abs(itself - images(workdir, "num=4")).max() <= 1
    with pytest.raises(UserError, match=r"a run of another network \(.*model: 'mlp' -> 'unet'"):
        images(workdir, *weak, f"guide.weak={improved}")


def test_a_run_is_opened_as_sample_opens_it(workdir):
    opened = open_run(load(workdir / "config.json"), workdir, "")
    assert opened.step == 4 and opened.weak is None


def test_a_deadline_and_early_pictures(workdir, newest, capsys):
    main_run("sample", "--workdir", workdir, "--deadline=5", "--early=2")
    folder = newest(workdir)
    said = capsys.readouterr().out
    assert folder.name == "step4-ancestral-deadline5-seed0"
    # of a table of twenty steps all, within the time
    assert said.startswith("20 steps in ") and said.endswith(f"samples: {folder}\n")
    assert {path.name for path in folder.glob("early_*")} == {"early_6.png", "early_13.png"}
    assert pixels(folder / "early_13.png").shape == pixels(folder / "grid.png").shape
    settings = json.loads((folder / "settings.json").read_text())["sampling"]
    assert settings["steps"] == "20"
    assert tiny.arrays(folder / "samples.npz")["images"].shape == (20, 8, 8, 1)


@pytest.mark.parametrize("given", ["0", "-1", "soon", "inf"])
def test_a_deadline_is_a_number_of_seconds(workdir, given):
    with pytest.raises(UserError, match="--deadline must be a number above 0, not"):
        main_run("sample", "--workdir", workdir, f"--deadline={given}")


def test_what_cannot_be_drawn_early_is_refused_and_writes_nothing(workdir):
    before = sorted(workdir.glob("samples/*"))
    for flags, said in (
        (("--early=-1",), "--early must be at least 0 pictures, not -1"),
        (("--early=2", "--config.sampling.half_until=-3"), "set config.sampling.half_until=none"),
        (("--deadline=1", "--config.sampling.tolerance=0.1"), "a deadline chooses the number of"),
    ):
        with pytest.raises(UserError, match=said):
            main_run("sample", "--workdir", workdir, *flags)
    assert sorted(workdir.glob("samples/*")) == before
