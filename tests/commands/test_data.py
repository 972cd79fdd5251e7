"""The command `data`, and a run on a folder of one's own images."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import curves, mlp_config, pixels

import main
from diffusion_jax.commands import data as command
from diffusion_jax.commands import train as loop
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import folder as folders
from diffusion_jax.data.report import summary
from diffusion_jax.data.spec import Declared
from diffusion_jax.runs.settings import to_json
from diffusion_jax.runs.workdir import open_workdir


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """What is remembered of files lies in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(path, value=0, size=(8, 8)):
    """A gray image of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)


def load(root, split, **settings):
    return folders.folder(split, Declared((8, 8, 1), 10), str(root), **settings)


def folder_config(root, **training):
    config = mlp_config(**training)
    config.data.source = "folder"
    config.data.source.folder = str(root)
    return config


@pytest.fixture
def classes(tmp_path):
    """120 images in ten classes, one brighter than the other; the last are wide."""
    for i in range(120):
        put(tmp_path / "photos" / f"class {i // 12}" / f"{i}.png", i, size=(8 + (i > 110), 8))
    return tmp_path / "photos"


def test_a_run_on_a_folder_trains_and_says_what_it_left_out(tmp_path, classes, no_pictures):
    (classes / "class 3" / "bad.png").touch()
    config = folder_config(classes, num_steps=2, eval_every=0, checkpoint_every=2)
    with pytest.raises(
        UserError, match=r"1 of 121 files .* cannot be read: class 3/bad.png \(no image\)"
    ):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.data.source.unreadable = "skip"
    loop.train(config, tmp_path / "run")
    lines = curves(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert "bad.png (no image); they are left out" in (tmp_path / "run" / "log.txt").read_text()


def test_data_describes_a_folder(tmp_path, classes, capsys):
    (classes / "class 3" / "bad.png").touch()
    (classes / "empty").mkdir()
    config = folder_config(classes)
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    words = ["main.py", "data", "--workdir", str(tmp_path / "run"), "--config", str(file)]
    with pytest.raises(UserError, match="a run would not train on these data: 1 files cannot"):
        main.run(words)
    out, workdir = capsys.readouterr().out, tmp_path / "run"
    report = json.loads((workdir / "data" / "report.json").read_text())
    assert {path.name for path in (workdir / "data").iterdir()} == {"grid.png", "report.json"}
    assert [path.name for path in workdir.iterdir()] == ["data"]
    train, test = report["train"], report["eval"]
    assert train["examples"] + test["examples"] == 120 == report["splits"]["all"]
    assert all(
        train["labels"][f"class {i}"] + test["labels"][f"class {i}"] == 12 for i in range(10)
    )
    assert report["sizes"]["least"] == [8, 8]
    assert report["sizes"]["most"] == [8, 9]
    assert report["unreadable"] == {"class 3/bad.png": "no image"}
    assert report["problems"] == [
        "1 files cannot be read, and config.data.source.unreadable is fail"
    ]
    assert report["notes"][-1].endswith("read: empty")
    # the numbers again, by another way
    source = load(classes, "train", unreadable="skip")
    everything = np.stack([source[i]["image"] for i in range(len(source))]).astype(float)
    assert report["mean"]["0..255"] == pytest.approx([everything.mean()])
    assert report["deviation"]["-1..1"] == pytest.approx([(everything / 127.5 - 1).std()])
    assert report["mean"]["-1..1"] == pytest.approx([(everything / 127.5 - 1).mean()])
    assert report["grid"] == [source.class_names[label] for label in source.labels[:64]]
    picture = pixels(workdir / "data" / "grid.png")
    times = picture.shape[0] // (8 * 9 + 1)
    picture = picture[::times, ::times]
    for number in (0, 1, 7, 8, 58, 63):  # row by row
        y, x = 1 + number // 8 * 9, 1 + number % 8 * 9
        np.testing.assert_array_equal(
            picture[y : y + 8, x : x + 8], source[number]["image"][..., 0]
        )
    for word in (
        f"{train['examples']} examples, 10 labels (class 0 ",
        "bad.png (no image)",
        "problem: 1 files",
        f"{workdir}/data",
    ):
        assert word in out
    config.data.source.unreadable = (
        "skip"  # what was wrong is mended, and the run enters the folder
    )
    (classes / "class 3" / "bad.png").unlink()
    assert "problem" not in summary(*command.describe(config, workdir))
    file.write_text(to_json(config))
    main.run(words)
    open_workdir(workdir, config)


def test_data_says_what_keeps_a_config_from_training(tmp_path):
    for i in range(3):
        put(tmp_path / "photos" / "a" / f"{i}.png", i)
    config = folder_config(tmp_path / "photos")
    command.describe(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "data" / "report.json").read_text())
    wrong, empty = report["problems"]
    assert wrong.endswith("has 1 classes, but config.data.num_classes is 10")
    assert "the split 'test' of the 3 images" in empty
    assert report["train"]["labels"] == {"a": 3}
    assert pixels(tmp_path / "run" / "data" / "grid.png").shape[1] > 100


def test_data_leaves_other_folders_alone(tmp_path, classes):
    config = folder_config(classes)
    with pytest.raises(UserError, match="holds no run of this program"):
        command.describe(config, classes)
    assert not (classes / "data").exists()
    config.data.source.folder = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no folder"):
        command.describe(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_data_ends_with_2_where_it_says_problem(tmp_path, monkeypatch, capsys):
    put(tmp_path / "photos" / "a" / "1.png")
    file = tmp_path / "config.json"
    file.write_text(to_json(folder_config(tmp_path / "photos")))
    words = ["main.py", "data", "--workdir", str(tmp_path / "run"), "--config", str(file)]
    monkeypatch.setattr("sys.argv", words)
    assert main.main() == 2
    out, error = capsys.readouterr()
    assert "\nproblem: " in out
    assert error.startswith("error: a run would not train on these data: ")
    assert error.count("\n") == 1
    assert (tmp_path / "run" / "data" / "report.json").is_file()


def test_data_measures_floats_in_their_own_units(tmp_path):
    images = np.random.default_rng(0).uniform(-3.0, 5.0, (40, 8, 8, 1)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=images, text=np.arange(80).reshape(40, 2))
    config = mlp_config()
    config.data.source = "arrays"
    config.data.source.folder, config.data.source.range = str(tmp_path / "a.npz"), (-4.0, 6.0)
    config.data.num_classes, config.conditioning = 0, ()
    report, folder = command.describe(config, tmp_path / "run")
    assert report["problems"] == []
    train = images[np.arange(40) % 20 != 0].astype(float)
    assert report["range"] == (-4.0, 6.0)
    assert report["mean"]["values"] == pytest.approx([train.mean()])
    assert report["deviation"]["-1..1"] == pytest.approx([(train / 5).std()])
    assert report["mean"]["-1..1"] == pytest.approx([(train + 4).mean() / 5 - 1])
    assert report["entries"]["text"] == [[2], "int32"]
    assert "range: -4 to 6" in summary(report, folder)
    assert pixels(folder / "grid.png").shape[1] > 100
