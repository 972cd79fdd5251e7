"""The command `evaluate`: figures that SciPy confirms on the very samples, resumption, memory."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny
from frechet_by_hand import flat, gaussians
from tiny import ROOT, evaluate_run, main_run, mlp_config

from diffusion_jax.commands import evaluate, nll, train
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources
from diffusion_jax.evaluation import extract, features, references
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Evaluation
from diffusion_jax.runs.settings import load
from diffusion_jax.runs.workdir import open_workdir
from diffusion_jax.training.checkpoint import Checkpoints


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A perceptron, scored in training at its last step."""
    folder, config = (
        tmp_path_factory.mktemp("evaluate") / "run",
        mlp_config(num_steps=4, eval_every=0),
    )
    scored = Evaluation(features="pixels", every=4, every_num=40, batch_size=20)
    config.evaluation = scored
    with tiny.without_pictures():
        train.train(config, folder)
    return folder


def run(workdir, *settings, flags=()):
    """Quick but for these settings, such as "num=33"."""
    evaluate_run(workdir, *flags, **dict(setting.split("=", 1) for setting in settings))


def report(workdir, num=40):
    (path,) = workdir.glob(f"evaluations/*/report-{num}.json")
    return json.loads(path.read_text())


def test_a_report_of_the_very_samples_that_sample_draws(workdir, capsys):
    settings = ("replicates=5", "bits_per_dim=6", "memorised=12")
    run(workdir, *settings, flags=["--config.sampling.seed=3"])
    out = capsys.readouterr().out
    assert "FID" in out and "bits/dim, ODE" in out
    found = report(workdir)
    own = ("--config.sampling.seed=3", "--config.sampling.num=40")
    main_run("sample", "--workdir", workdir, *own)
    (file,) = workdir.glob("samples/*seed3/samples.npz")
    samples, train = tiny.arrays(file)["images"], sources.digits("train")
    expected = gaussians(flat(samples), flat(train.images))
    np.testing.assert_allclose(
        found["fid"]["value"], expected, rtol=2e-3
    )  # a grey level of rounding
    assert found["fid"]["low"] < found["fid"]["value"] < found["fid"]["high"]
    assert (
        found["fid_infinity"]["low"]
        < found["fid_infinity"]["value"]
        < found["fid_infinity"]["high"]
    )
    assert found["rows"] == 40

    protocol = found["protocol"]
    assert (protocol["num"], protocol["step"], protocol["ema"]) == (40, 4, True)
    assert protocol["sampling"]["seed"] == 3 and protocol["sampling"]["steps"] == "5"
    assert len(protocol["network"]) == 64 and protocol["features"]["features"] == "pixels"
    assert protocol["reference"]["count"] == 1617 and protocol["reference"]["split"] == "train"

    assert (
        found["memorisation"]["samples"]["count"] == 12
        and found["memorisation"]["held_out"]["exact"] == 0
    )
    folder = next(workdir.glob("evaluations/*seed3*"))
    assert (
        tiny.pixels(folder / "memorised.png").shape[0] > 90
        and tiny.pixels(folder / "samples.png").shape[0] > 90
    )

    config = load(workdir / "config.json")
    config.likelihood.examples = 6
    for method in ("bound", "ode"):
        config.likelihood.method = method
        value = json.loads(nll.nll(config, workdir).read_text())
        assert found["bits_per_dim"][method]["value"] == pytest.approx(
            value["bits_per_dim"], rel=1e-5
        )
        assert found["bits_per_dim"][method]["standard_error"] == pytest.approx(
            value["standard_error"], rel=1e-4
        )
    assert any((workdir / "tensorboard").iterdir())


def test_training_scores_itself_as_the_command_does(workdir):
    run(workdir, flags=["--config.sampling.seed=0"])
    (path,) = workdir.glob("evaluations/*seed0*/report-40.json")
    line = next(line for line in tiny.curves(workdir) if "evaluation/fid" in line)
    assert line["step"] == 4
    assert line["evaluation/fid"] == pytest.approx(
        json.loads(path.read_text())["fid"]["value"], rel=1e-6
    )
    assert 0.0 <= line["evaluation/precision"] <= 1.0


def test_more_samples_later_are_only_those_that_are_missing(workdir, monkeypatch):
    settings = ("num=25",)
    flags = ["--config.sampling.seed=7"]
    run(workdir, *settings, flags=flags)
    (file,) = workdir.glob("evaluations/*seed7*/features.f4")
    before, drawn, real = file.read_bytes(), [], evaluate.sampled

    def counting(*arguments):
        images_of = real(*arguments)
        return lambda index: drawn.extend(index.tolist()) or images_of(index)

    monkeypatch.setattr(evaluate, "sampled", counting)
    run(workdir, "num=33", flags=flags)
    assert set(drawn) >= set(range(25, 33))
    assert file.read_bytes()[: len(before)] == before and len(file.read_bytes()) == 33 * 64 * 4
    run(workdir, "num=33", flags=flags)
    drawn_again = drawn[:]
    assert drawn == drawn_again
    assert (file.parent / "report-25.json").exists() and (file.parent / "report-33.json").exists()


USERS = """
import numpy as np

def features(images):
    assert images.dtype == np.uint8
    return images.mean(axis=(2, 3))

def probabilities(images):
    return np.full((len(images), 2), 0.5)
"""


def test_a_users_own_features(workdir, tmp_path):
    file = tmp_path / "rows.py"
    file.write_text(USERS)
    run(workdir, f"features={file}")
    (path,) = workdir.glob("evaluations/*-rows-*/report-40.json")
    found = json.loads(path.read_text())
    assert found["inception_score"]["mean"] == pytest.approx(1.0)
    (rows,) = workdir.glob("evaluations/*-rows-*/features.f4")
    assert rows.stat().st_size == 40 * (8 + 2) * 4
    for text, message in (
        ("x = 1", "must define features"),
        ("def features(images): return images", r"must return \[20, D\], not \[20, 8, 8, 1\]"),
        (
            "def features(images): return images.reshape(len(images), -1) * float('nan')",
            "are not finite",
        ),
        ("import nothing_such", "cannot be run: ModuleNotFoundError"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            run(workdir, f"features={file}")


def test_the_digits_network_knows_the_digits():
    test = sources.digits("test")
    found = features.load("digits").apply(test.images)
    assert (found["probabilities"].argmax(1) == test.labels).mean() > 0.95
    assert found["features"].shape == (180, 64)


# The largest resident size in MB of each of several commands, without what was freed before it.
PEAKS = """
import ctypes, json, pathlib, re, sys
import main
from diffusion_jax.evaluation import metrics
metrics.BLOCK = 2**20  # of pairs: one that few samples fill, too
peaks = []
for words in json.loads(sys.argv[1]):
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    main.run(words)
    status = pathlib.Path("/proc/self/status").read_text()
    peaks.append(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
print("peaks:", json.dumps(peaks))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the largest size since a moment")
def test_memory_does_not_grow_with_the_samples(workdir, tmp_path):
    """In one process, whose features are small, with 1,000 and with 10,000 samples; the first
    command compiles."""
    file = tmp_path / "small.py"
    file.write_text("def features(images): return images[:, ::2, ::2].reshape(len(images), -1)")
    settings = {"batch_size": 500, "features": file, "replicates": 2, "bits_per_dim": 0}

    def words(num, seed):
        given = (settings | {"memorised": 0, "num": num}).items()
        flags = [f"--config.evaluation.{name}={value}" for name, value in given]
        sampling = ["--config.sampling.steps=1", f"--config.sampling.seed={seed}"]
        return ["main.py", "evaluate", "--workdir", str(workdir), *flags, *sampling]

    commands = [words(1000, 1), words(1000, 2), words(10_000, 3)]
    command = [sys.executable, "-c", PEAKS, json.dumps(commands)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, few, many = json.loads(done.stdout.rpartition("peaks: ")[2])
    assert many < few + 20.0


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        ((), ("features=inceptoin",), "did you mean 'inception'?"),
        ((), ("features=no/such.py",), "there is no such file"),
        (
            (),
            ("features=inception", "weights=no.npz"),
            "no file no.npz of the Inception network's weights",
        ),
        ((), ("weights=some.npz",), "pixels have none"),
        ((), ("num=3",), "config.evaluation.num must be at least 10, not 3"),
        (("--config.model.width=32",), (), "evaluate takes only"),
        (
            ("--against", "no/such"),
            (),
            "no/such is no folder and no .npz or .npy file of images",
        ),
        (("--against", "valid"), (), "splits train and test"),
        (("--images", "test"), (), "--against is missing"),
        (("--imagse", "test"), (), "unknown flag --imagse; did you mean 'images'?"),
    ],
)
def test_bad_input_is_named_and_leaves_no_trace(workdir, flags, settings, message):
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError) as error:
        run(workdir, *settings, flags=flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(workdir.rglob("*")) == before


def test_reports_against_two_references_lie_side_by_side(workdir):
    run(workdir, flags=["--config.sampling.seed=11"])
    (folder,) = workdir.glob("evaluations/*seed11*")
    own = (folder / "report-40.json").read_bytes()
    run(workdir, flags=["--config.sampling.seed=11", "--against", "test"])
    (other,) = folder.glob("report-40-against-*.json")
    assert json.loads(other.read_text())["protocol"]["reference"]["split"] == "test"
    assert (folder / "report-40.json").read_bytes() == own


def test_bits_per_dim_are_those_of_the_parameters_that_draw(workdir):
    run(
        workdir,
        "bits_per_dim=1",
        flags=["--config.sampling.seed=12", "--config.sampling.ema=false"],
    )
    (file,) = workdir.glob("evaluations/*raw-seed12*/report-40.json")
    found = json.loads(file.read_text())
    assert found["protocol"]["ema"] is found["bits_per_dim"]["likelihood"]["ema"] is False
    assert found["bits_per_dim"]["ode"]["standard_error"] is None


def test_samples_of_another_weaker_run_are_other_samples(workdir, tmp_path, monkeypatch):
    """The folder of sampling.guide.weak is the same, its parameters are not."""
    monkeypatch.chdir(tmp_path)
    folders, config = [], mlp_config(num_steps=1, eval_every=0)
    for seed in (1, 2):
        shutil.rmtree("weak", ignore_errors=True)
        open_workdir(pathlib.Path("weak"), config)
        checkpoints = Checkpoints(pathlib.Path("weak"))
        checkpoints.save(build(config).init_state(jax.random.key(seed)), {}, wait=True)
        checkpoints.close()
        run(
            workdir,
            flags=[
                "--config.sampling.seed=13",
                "--config.sampling.guide=autoguidance",
                "--config.sampling.guide.weak=weak",
                "--config.sampling.guidance=1",
            ],
        )
        folders.append(len(list(workdir.glob("evaluations/*seed13*"))))
    assert folders == [1, 2]


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        (("bits_per_dim=2",), ("--config.likelihood.split=validation",), "splits train and test"),
        (("bits_per_dim=2",), ("--config.likelihood.steps=many",), "many"),
        (("replicates=1",), (), "replicates must be 0 or at least 2"),
    ],
)
def test_what_cannot_be_measured_is_said_before_samples_are_drawn(
    workdir, monkeypatch, settings, flags, message
):
    monkeypatch.setattr(evaluate, "sampled", lambda *arguments: pytest.fail("samples are drawn"))
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError, match=message):
        run(workdir, *settings, flags=["--config.sampling.seed=14", *flags])
    assert sorted(workdir.rglob("*")) == before


def test_what_cannot_be_written_is_named(workdir, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(references, "image_set", lambda *arguments: pytest.fail("images are read"))
    with pytest.raises(UserError, match="cannot be written: .*file is no folder"):
        run(tmp_path / "file" / "out", flags=["--images", "a", "--against", "b"])

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(extract.Rows, "append", full)
    with pytest.raises(UserError, match="cannot be read or written: No space left on device"):
        run(workdir, flags=["--config.sampling.seed=15"])
