"""The command `compare`: calls that are counted, figures that SciPy confirms on the very samples,
what is known is not measured again."""

import csv
import json

import numpy as np
import pytest
import tiny
from frechet_by_hand import flat, gaussians
from tiny import main_run, pixels

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources
from diffusion_jax.runs import comparison
from diffusion_jax.runs.config import use
from diffusion_jax.runs.registries import REGISTRIES
from diffusion_jax.runs.registry import bound

# features with classes: of ten, by the number of grey pixels
COUNTED = """
import numpy as np
def features(images):
    return images.reshape(len(images), -1) / np.float32(255.0)
def probabilities(images):
    return np.eye(10)[(images.reshape(len(images), -1) > 127).sum(axis=1) % 10]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def compare(workdir, out, *flags, features="pixels", num=30):
    quick = {"features": features, "batch_size": 30, "replicates": 3, "subsets": 2}
    given = (f"--config.evaluation.{name}={value}" for name, value in quick.items())
    main_run("compare", "--workdir", workdir, f"--out={out}", f"--num={num}", *flags, *given)
    return json.loads((out / "compare.json").read_text())["rows"]


def test_calls_are_those_of_the_network_and_scores_those_of_the_samples(
    improved, tmp_path, newest, capsys
):
    own, out = tmp_path / "own.py", tmp_path / "out"
    own.write_text(COUNTED)
    guided = ("--config.sampling.guidance=1", "--config.sampling.seed=2")
    asked = ("--samplers=ddim,heun_flow:uniform", "--steps=3")
    rows = compare(improved, out, *asked, *guided, features=own)
    assert [(r["sampler"], r["grid"], r["steps"]) for r in rows] == [
        ("ddim", "trailing", "3"), ("heun_flow", "uniform", "3"),
    ]  # fmt: skip
    # three levels: two steps and the last x0, each of two branches; Heun's steps call twice
    assert [r["calls"] for r in rows] == [6, 10]
    ddim = ("sampler=ddim", "grid=trailing", "steps=3", "num=30")
    main_run(
        "sample", "--workdir", improved, *guided, *(f"--config.sampling.{one}" for one in ddim)
    )
    samples = tiny.arrays(newest(improved) / "samples.npz")["images"]
    expected = gaussians(flat(samples), flat(sources.digits("train").images))
    np.testing.assert_allclose(rows[0]["fid"]["value"], expected, rtol=2e-3)
    hits = ((samples.reshape(30, -1) > 127).sum(axis=1) % 10 == np.arange(30) % 10).mean()
    found = rows[0]["recognised"]
    assert abs(found["value"] - hits) < 0.05  # a grey level of rounding
    assert found["low"] < found["value"] < found["high"]
    shown = capsys.readouterr().out
    assert "heun_flow        uniform         3      10" in shown
    (ddim, _) = csv.DictReader((out / "compare.csv").read_text().splitlines())
    assert float(ddim["fid.low"]) == rows[0]["fid"]["low"]
    assert pixels(out / "compare.png").shape[1] > 600  # two axes


def test_runs_are_compared_and_what_is_known_is_not_measured_again(
    improved, undisturbed, tmp_path, monkeypatch
):
    both, out = f"{improved},{undisturbed[1]}", tmp_path / "out"
    asked = ("--samplers=ddim", "--steps=1")
    first = compare(both, out, *asked)
    assert [row["run"] for row in first] == [str(improved), str(undisturbed[1])]  # both `run`
    assert first[0]["fid"] != first[1]["fid"]

    drawn = []
    real = comparison.make_generate
    monkeypatch.setattr(
        comparison, "make_generate", lambda *a, **k: drawn.append(1) or real(*a, **k)
    )
    again = compare(both, out, "--samplers=ddim", "--steps=2,1")
    assert len(drawn) == 2
    assert [row for row in again if row["steps"] == "1"] == first
    assert [row["calls"] for row in again] == [1, 2, 1, 2]
    # features lie beside the run: nothing is drawn for a comparison elsewhere, calls are known
    monkeypatch.setattr(comparison, "sampled", lambda *a: lambda index: pytest.fail("drawn"))
    assert compare(both, tmp_path / "other", *asked) == first


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--samplers=dimm",), "did you mean 'ddim'"),
        (("--samplers=ddim:trailin",), "did you mean 'trailing'"),
        (("--samplers=,",), "--samplers names none"),
        (("--steps=1,two",), "--steps must be whole numbers above 0"),
        (("--steps=0",), "--steps must be whole numbers above 0"),
        (("--steps=21", "--samplers=ddim"), "21 sampling steps asked of a table of 20"),
        (("--num=5",), "--num must be at least 10"),
        (("--config.seed=3",), "compare takes only config.sampling and .evaluation settings"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_drawn(undisturbed, tmp_path, flags, words):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=words) as caught:
        main_run("compare", "--workdir", undisturbed[1], f"--out={out}", *flags)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_runs_that_are_none_or_of_other_data_are_named(undisturbed, tmp_path):
    with pytest.raises(UserError, match="none holds no run"):
        main_run("compare", "--workdir", f"{tmp_path / 'none'},{undisturbed[1]}")


def test_a_curve_is_known_by_its_entries_and_their_arguments():
    called = lambda name: comparison.called(bound(REGISTRIES["sampling.sampler"], name))
    assert called("DPM++ 2M SDE") == "dpmpp_2m_sde"
    assert called("DPM++ 2M SDE Heun") == "dpmpp_2m_sde(variant=heun)"
    assert called(use("ddim", eta=0.0)) == "ddim" != called(use("ddim", eta=1.0))


def test_the_interval_of_a_share_is_wilsons():
    # Brown, Cai & DasGupta 2001: n = 10, none recognised: 0 to z^2 / (n + z^2)
    found = comparison.share(0, 10)
    np.testing.assert_allclose([found["low"], found["high"]], [0, 0.2775], atol=1e-4)
