"""The command `evaluate`: figures that SciPy confirms on the very samples, resumption, memory, any
two sets of images."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import tiny
from PIL import Image
from tiny import ROOT, tiny_config

import main
from diffusion_jax.commands import evaluate, nll
from diffusion_jax.commands import sample as generate
from diffusion_jax.commands import train as loop
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources
from diffusion_jax.evaluation import extract, features, frechet, metrics, references
from diffusion_jax.evaluation.extract import Extracted
from diffusion_jax.runs import config as configs


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A tiny run, scored in training at its last step."""
    folder, config = tmp_path_factory.mktemp("evaluate") / "run", tiny_config(num_steps=4)
    config.evaluation = configs.Evaluation(features="pixels", every=4, every_num=40, batch_size=20)
    loop.train(config, folder)
    return folder


QUICK = (
    "features=pixels",
    "num=40",
    "batch_size=20",
    "bits_per_dim=0",
    "memorised=0",
    "replicates=0",
    "subsets=3",
)


def run(workdir, *settings, flags=(), quick=QUICK):
    arguments = ["main.py", "evaluate", "--workdir", str(workdir), *map(str, flags)]
    main.run(arguments + [f"--config.evaluation.{setting}" for setting in (*quick, *settings)])


def report(workdir, num=40):
    (path,) = workdir.glob(f"evaluations/*/report-{num}.json")
    return json.loads(path.read_text())


def gaussians(a, b):
    """The Fréchet distance of two sets of features by its definition, with symmetric square
    roots."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = scipy.linalg.eigh(covariances[0])
    half = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    shared = np.sqrt(np.maximum(scipy.linalg.eigvalsh(half @ covariances[1] @ half), 0.0)).sum()
    return (
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + np.trace(covariances[0] + covariances[1])
        - 2 * shared
    )


def flat(images):
    return images.reshape(len(images), -1) / 255.0


def test_a_report_of_the_very_samples_that_sample_draws(workdir, capsys):
    run(
        workdir,
        "replicates=5",
        "bits_per_dim=6",
        "memorised=12",
        flags=["--config.sampling.seed=3"],
    )
    out = capsys.readouterr().out
    assert "FID" in out and "bits/dim, ODE" in out
    found = report(workdir)
    main.run(
        [
            "main.py",
            "sample",
            "--workdir",
            str(workdir),
            "--config.sampling.seed=3",
            "--config.sampling.num=40",
        ]
    )
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

    config = configs.load(workdir / "config.json")
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


def test_scores_of_several_kinds_of_features(tmp_path):
    """Spatial features and probabilities lie beside the others in one file."""
    rng = np.random.default_rng(1)
    feature, spatial, p = (
        rng.normal(size=(60, 5)),
        rng.normal(size=(60, 7)),
        rng.dirichlet(np.ones(4), 60),
    )
    place = Extracted(tmp_path, {}, (2, 2, 1))
    for part in (slice(0, 25), slice(25, 60)):
        found = {"probabilities": p[part], "features": feature[part], "spatial": spatial[part]}
        place.append(np.zeros((35, 2, 2, 1), np.uint8)[: len(p[part])], found)
    other, other_spatial = rng.normal(1.0, 1.0, (80, 5)), rng.normal(2.0, 1.0, (80, 7))
    fit = lambda rows: frechet.statistics([rows])
    reference = references.Reference(fit(other), fit(other_spatial), other.astype(np.float32))
    found = evaluate.scores(place, 60, reference, replicates=0)
    np.testing.assert_allclose(found["fid"]["value"], gaussians(feature, other), rtol=1e-5)
    np.testing.assert_allclose(found["spatial_fid"], gaussians(spatial, other_spatial), rtol=1e-5)
    np.testing.assert_allclose(
        found["inception_score"]["mean"], metrics.inception_score(p, 10).mean, rtol=1e-5
    )
    assert found["kid"]["mean"] > 0.0 and "fid_infinity" not in found
    with pytest.raises(UserError, match="3 features an image, the samples have 5"):
        evaluate.scores(place, 60, references.Reference(fit(other[:, :3]), None, None))


def pictures(folder, images):
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze(-1)).save(folder / f"{i}.png")
    return folder


def test_any_two_sets_of_images(tmp_path, capsys):
    digits = sources.digits("train").images
    left, right = pictures(tmp_path / "left", digits[:60]), tmp_path / "right.npz"
    np.savez(right, images=digits[100:180])
    shape = ["--config", ROOT / "experiments" / "digits.py"]
    run(tmp_path / "out", flags=["--images", left, "--against", right, *shape])
    (path,) = (tmp_path / "out" / "evaluations").glob("left*.json")
    found = json.loads(path.read_text())
    np.testing.assert_allclose(
        found["fid"]["value"], gaussians(flat(digits[:60]), flat(digits[100:180])), rtol=1e-5
    )
    assert found["protocol"]["images"]["count"] == 60 and found["protocol"]["reference_count"] == 80
    assert str(tmp_path) not in path.read_text()

    np.savez(tmp_path / "copy.npz", digits[:60])  # without names, as ADM writes it
    run(tmp_path / "same", flags=["--images", left, "--against", tmp_path / "copy.npz", *shape])
    (path,) = (tmp_path / "same" / "evaluations").glob("left*.json")
    same = json.loads(path.read_text())
    assert same["fid"]["value"] < 1e-6 and (
        same["precision"],
        same["recall"],
        same["coverage"],
    ) == (1.0, 1.0, 1.0)

    x = flat(digits[100:180])
    np.savez(tmp_path / "theirs.npz", mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    run(
        tmp_path / "theirs",
        flags=["--images", "test", "--against", tmp_path / "theirs.npz", *shape],
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
    run(tmp_path / "out", flags=["--images", tmp_path / "a", "--against", tmp_path / "b"])
    (path,) = (tmp_path / "out" / "evaluations").glob("*.json")
    assert json.loads(path.read_text())["protocol"]["images"]["shape"] == [5, 6, 3]
    Image.new("RGB", (9, 9)).save(tmp_path / "b" / "other.png")
    with pytest.raises(
        UserError, match="2 sizes, from 5 x 6 to 9 x 9; --config.data.shape=64,64,3 says"
    ):
        run(tmp_path / "out", flags=["--images", tmp_path / "a", "--against", tmp_path / "b"])


def test_the_statistics_of_a_reference_are_computed_once_and_again_when_an_image_changes(tmp_path):
    folder = pictures(tmp_path / "set", sources.digits("train").images[:15])
    data = configs.Data(shape=(8, 8, 1))
    function, said = features.load("pixels"), []
    first = references.reference(str(folder), data, function, 4, said.append)
    again = references.reference(str(folder), data, function, 4, said.append)
    assert len(said) == 1
    np.testing.assert_array_equal(first.statistics.covariance, again.statistics.covariance)
    np.testing.assert_array_equal(first.rows, again.rows)
    record = first.statistics.record
    assert (record["images"], record["count"], record["features"]) == ("set", 15, "pixels")
    Image.new("L", (8, 8), 9).save(folder / "3.png")
    assert (
        references.reference(str(folder), data, function, 4, said.append).statistics.mean[0]
        != first.statistics.mean[0]
    )
    path = said[0].removeprefix("reference: ")
    assert references.reference(path, data, function, 4).statistics.record == record


def test_two_sets_are_rated_and_counted(tmp_path, capsys):
    digits = sources.digits("train").images
    left, right = (
        pictures(tmp_path / "left", digits[:30]),
        pictures(tmp_path / "right", digits[100:120]),
    )
    command = ["main.py", "rate", "--workdir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--images and --against name the two sets"):
        main.run([*command, "--images", str(left)])
    main.run([*command, "--images", str(left), "--against", str(right)])
    page = tmp_path / "out" / "rating" / "index.html"
    assert f"page: {page}" in capsys.readouterr().out
    assert "left/" not in page.read_text()
    key = json.loads((page.parent / "key.json").read_text())
    answers = [
        "left" if first == 0 else "right" for first in key["left"]
    ]  # always for the first set
    ratings = {"page": key["page"], "rater": "", "token": "1f", "saved": 1.0, "answers": answers}
    (tmp_path / "ratings.json").write_text(json.dumps(ratings))
    main.run([*command, "--ratings", str(tmp_path / "ratings.json")])
    found = json.loads((page.parent / "tally.json").read_text())
    assert found["win_rate"] == 1.0 and found["wins"][str(left)] == len(answers) == 20


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


def test_memory_does_not_grow_with_the_samples(workdir, tmp_path):
    """The largest resident size of a whole process, whose features are small, with 1,000 and with
    10,000 samples."""
    file = tmp_path / "small.py"
    file.write_text("def features(images): return images[:, ::2, ::2].reshape(len(images), -1)")
    program = (
        "import main, resource, sys; main.run(sys.argv[2:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=open(sys.argv[1], 'w'))"
    )

    def megabytes(num):
        settings = (
            ("num", num),
            ("batch_size", 500),
            ("features", file),
            ("replicates", 2),
            ("bits_per_dim", 0),
        )
        arguments = [
            f"--config.evaluation.{name}={value}" for name, value in (*settings, ("memorised", 0))
        ]
        command = [
            sys.executable,
            "-c",
            program,
            str(tmp_path / "peak"),
            "main.py",
            "evaluate",
            "--workdir",
            str(workdir),
        ]
        subprocess.run(
            [*command, *arguments, "--config.sampling.steps=1"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        return int((tmp_path / "peak").read_text()) / 1024

    few = megabytes(1000)
    assert megabytes(10_000) < few + 20.0


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
        (("--config.model.channels=32",), (), "evaluate takes only"),
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


def test_a_run_is_opened_as_sample_opens_it(workdir):
    config = configs.load(workdir / "config.json")
    opened = generate.open_run(config, workdir, "")
    assert opened.step == 4 and opened.weak is None


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
    other = features.load("digits").record
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


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # numpy leaves a damaged file open
def test_a_file_that_is_no_reference_is_named(workdir, tmp_path):
    for name, message in damaged(tmp_path).items():
        with pytest.raises(UserError, match=message):
            run(workdir, flags=["--against", tmp_path / f"{name}.npz"])
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, sources.digits("train").images[:20])  # the name of an archive
    run(workdir, flags=["--against", tmp_path / "array.npz"])


def test_others_statistics_are_known_by_their_bytes(tmp_path):
    records = []
    for i in range(2):
        np.savez(tmp_path / "theirs.npz", mu=np.full(64, i), sigma=np.eye(64))
        records.append(
            references.reference(
                str(tmp_path / "theirs.npz"), None, features.load("pixels"), 4
            ).statistics.record
        )
    assert records[0]["statistics"] == "theirs.npz" and records[0] != records[1]


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
    """The folder of sampling.weak is the same, its parameters are not."""
    monkeypatch.chdir(tmp_path)
    folders = []
    for seed in (1, 2):
        config = tiny_config(num_steps=1)
        config.seed = seed
        shutil.rmtree("weak", ignore_errors=True)
        loop.train(config, pathlib.Path("weak"))
        run(
            workdir,
            flags=[
                "--config.sampling.seed=13",
                "--config.sampling.weak=weak",
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
