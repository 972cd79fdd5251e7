"""The command `edit`, of a run whose network is a function of every pixel and the class."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import main_run, pixels, tiny_config

from diffusion_jax.commands import edit
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources
from diffusion_jax.models.registry import MODELS
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.workdir import open_workdir
from diffusion_jax.training.checkpoint import Checkpoints


class Small(nn.Module):
    """It compiles at once, and its x0 leaves [-1, 1]."""

    @nn.compact
    def __call__(self, x, t, cond, *, train=False):
        shift = self.param("shift", lambda key: jnp.linspace(1.5, -1.5, 11))
        return -jnp.tanh(x + shift[cond["label"]][:, None, None, None])


def small(channels: int = 1) -> Small:
    return Small()


def run_config():
    config = tiny_config()
    config.model = "small"
    config.conditioning = use("label", dropout=0.2)
    config.diffusion.prediction = "v"
    return config


@pytest.fixture(scope="module", autouse=True)
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "small", small)
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, network):
    """A run of the small network."""
    config, folder = run_config(), tmp_path_factory.mktemp("editing") / "run"
    open_workdir(folder, config)
    checkpoints = Checkpoints(folder)
    checkpoints.save(build(config).init_state(jax.random.key(0)), {}, wait=True)
    checkpoints.close()
    return folder


def settings(task, sampling=(), **editing_settings):
    config = run_config()
    if task in edit.INVERTING:
        config.sampling.sampler, config.sampling.grid = "heun_flow", "logsnr"
        config.sampling.steps = "4"
    for name, value in dict(sampling).items():
        setattr(config.sampling, name, value)
    for name, value in ({"task": task, "num": 4} | editing_settings).items():
        setattr(config.editing, name, value)
    return config


def edited(config, workdir):
    folder = edit.edit(config, workdir)
    return folder, tiny.arrays(folder / "edits.npz")


def digits(count):
    source = sources.digits("test")
    return source.images[:count], source.labels[:count]


def test_inpaint_keeps_the_known_pixels_and_shows_them(workdir, capsys):
    flags = ("--config.editing.mask=left", "--config.editing.num=4", "--config.editing.resamples=2")
    main_run("edit", "--workdir", workdir, *flags)
    (folder,) = (workdir / "edits").glob("step0-inpaint-left-*")
    assert folder.name == "step0-inpaint-left-ancestral-5-seed0"
    assert capsys.readouterr().out == f"edits: {folder}\n"
    arrays = tiny.arrays(folder / "edits.npz")
    images, labels = digits(4)
    np.testing.assert_array_equal(arrays["originals"], images)
    np.testing.assert_array_equal(arrays["labels"], labels)
    np.testing.assert_array_equal(arrays["mask"][..., 0], np.arange(8)[None] * np.ones((8, 1)) >= 4)
    np.testing.assert_array_equal(arrays["results"][:, :, 4:], images[:, :, 4:])
    assert (arrays["inputs"][:, :, :4] == edit.GREY).all()
    assert (
        np.abs(arrays["results"][:, :, :4].astype(int) - images[:, :, :4]).mean() > 20
    )  # an untrained network's
    grid = pixels(folder / "grid.png")
    times = grid.shape[0] // (3 * 9 + 1)
    rows = [
        [grid[::times, ::times][1 + 9 * i : 9 + 9 * i, 1 + 9 * j : 9 + 9 * j] for j in range(4)]
        for i in range(3)
    ]
    np.testing.assert_array_equal(
        rows, [arrays[name][..., 0] for name in ("originals", "inputs", "results")]
    )


def test_image_to_image_depends_on_seed_and_number_alone(workdir):
    folder, four = edited(settings("image_to_image", strength=0.4), workdir)
    assert "image_to_image-strength0.4" in folder.name
    for sampling, num in (({"batch_size": 3}, 4), ({"seed": 1}, 1)):
        other = edited(settings("image_to_image", sampling, strength=0.4, num=num), workdir)[1][
            "results"
        ].astype(int)
        assert (abs(four["results"][:num] - other).max() <= 1) == ("batch_size" in sampling)
    assert four["results"].shape == four["inputs"].shape == (4, 8, 8, 1)


def test_reconstruct_tells_its_error(workdir, capsys):
    _, arrays = edited(
        settings("reconstruct", {"steps": "20", "clip_x0": True, "threshold": 0.9}), workdir
    )
    assert arrays["errors"].shape == (4, 8, 8, 1)
    found = f"largest {arrays['errors'].max():.2g}, mean {arrays['errors'].mean():.2g}\n"
    assert capsys.readouterr().out == "error a pixel, of images in [-1, 1]: " + found
    assert arrays["errors"].max() < 0.05
    assert np.abs(arrays["results"].astype(int) - arrays["originals"]).max() < 8
    assert np.abs(arrays["inputs"].astype(int) - arrays["originals"]).mean() > 30
    _, plain = edited(settings("reconstruct", {"steps": "20", "clip_x0": False}), workdir)
    np.testing.assert_array_equal(arrays["inputs"], plain["inputs"])  # the network's own flow


def test_interpolate_leads_from_image_to_image(workdir, tmp_path):
    images, labels = digits(5)
    np.savez(tmp_path / "a.npz", images=images, labels=labels[::-1])
    config = settings("interpolate", {"steps": "20"}, images=str(tmp_path / "a.npz"), num=5)
    folder, arrays = edited(config, workdir)
    assert arrays["results"].shape == (2, len(edit.FRACTIONS), 8, 8, 1)
    for pair in range(2):
        for end, i in ((0, 2 * pair), (-1, 2 * pair + 1)):
            assert np.abs(arrays["results"][pair, end].astype(int) - images[i]).max() < 12
    grid = pixels(folder / "grid.png")
    times = grid.shape[0] // (2 * 9 + 1)
    np.testing.assert_array_equal(grid[::times, ::times][10:18, 1:9], images[2, :, :, 0])
    assert grid.shape[1] == times * ((len(edit.FRACTIONS) + 2) * 9 + 1)


def test_translate_goes_to_the_next_class_or_to_the_one_asked_for(workdir):
    _, arrays = edited(settings("translate", {"steps": "20"}), workdir)
    np.testing.assert_array_equal(arrays["targets"], (digits(4)[1] + 1) % 10)
    _, own = edited(
        settings("translate", {"steps": "20"}, num=1, label=int(digits(1)[1][0])), workdir
    )
    assert (
        np.abs(own["results"].astype(int) - own["originals"]).max() < 8
    )  # to its own class and back
    folder, guided = edited(settings("translate", {"steps": "20", "guidance": 3.0}), workdir)
    assert "guidance3" in folder.name
    assert (guided["results"] != arrays["results"]).any()


def test_a_picture_and_a_mask_of_ones_own(tmp_path):
    config = settings("inpaint", images=str(tmp_path / "a.png"), mask=str(tmp_path / "m.png"))
    config.data.num_classes = 0
    image, kept = np.arange(64, dtype=np.uint8).reshape(8, 8), np.eye(8) > 0
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(kept).save(tmp_path / "m.png")
    given = edit.load_images(config)
    assert set(given) == {"image"}
    np.testing.assert_array_equal(given["image"], image[None, ..., None])
    np.testing.assert_array_equal(edit.load_mask(config)[..., 0], kept)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("right", (0, 8), (4, 8)),
        ("top", (0, 4), (0, 8)),
        ("bottom", (4, 8), (0, 8)),
        ("centre", (2, 6), (2, 6)),
    ],
)
def test_a_named_mask_removes_that_part(name, rows, columns):
    kept = np.ones((8, 8, 1), bool)
    kept[slice(*rows), slice(*columns)] = False
    np.testing.assert_array_equal(edit.load_mask(settings("inpaint", mask=name)), kept)


BAD_INPUT = [
    ({"task": "inpant"}, {}, "config.editing.task has no 'inpant'; did you mean 'inpaint'?"),
    ({"num": 0}, {}, "config.editing.num must be at least 1, not 0"),
    ({"resamples": 0}, {}, "config.editing.resamples must be at least 1"),
    (
        {"task": "image_to_image", "strength": 0.0},
        {},
        "strength must be above 0 and at most 1, not 0.0",
    ),
    (
        {"task": "translate", "label": 10},
        {},
        "config.editing.label must be -1, for the next class, or 0 to 9, not 10",
    ),
    ({"task": "reconstruct"}, {"sampler": "ancestral"}, "must be one of ddim, euler, heun"),
    (
        {"task": "translate"},
        {"sampler": use("ddim", eta=0.5)},
        "which ddim with eta=0.5 does not allow",
    ),
    ({"task": "interpolate"}, {"guidance": 1.0}, "leave config.sampling.guidance at 0"),
    ({"task": "interpolate", "num": 1}, {}, "needs two images or more"),
    ({"split": "valid"}, {}, "splits train and test"),
    ({"mask": "lefft"}, {}, "did you mean 'left'?"),
    ({"mask": "{folder}/no.png"}, {}, "no.png cannot be read: No such file or directory"),
    ({"mask": "{folder}/text.png"}, {}, "text.png cannot be read: it is no picture"),
    ({"mask": "{folder}/white.png"}, {}, "white.png removes no pixel"),
    (
        {"mask": "{folder}/large.png"},
        {},
        "large.png is 9 x 8 pixels, but this run's images are 8 x 8",
    ),
    ({"images": "{folder}/no.npz"}, {}, "no.npz cannot be read: No such file or directory"),
    ({"images": "{folder}/text.npz"}, {}, "text.npz cannot be read"),
    ({"images": "{folder}/empty.npz"}, {}, "empty.npz holds no array `images`"),
    (
        {"images": "{folder}/float.npz"},
        {},
        "must be uint8 of shape ('N', 8, 8, 1), not float64 (2, 8, 8, 1)",
    ),
    ({"images": "{folder}/labels.npz"}, {}, "`labels` must be one of 0 to 9 for each image"),
    ({"images": "{folder}/plain.npz"}, {}, "has no labels, which this run needs"),
    ({"images": "{folder}/white.png"}, {}, "has no labels, which this run needs"),
    ({"images": "{folder}/a.jpg"}, {}, "config.editing.images must be a .npz or a .png"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name in ("text.png", "text.npz"):
        (folder / name).write_text("text")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(folder / "white.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(folder / "large.png")
    images = np.zeros((2, 8, 8, 1), np.uint8)
    np.savez(folder / "empty.npz")
    np.savez(folder / "float.npz", images=images / 255)
    np.savez(folder / "labels.npz", images=images, labels=np.array([0, 10]))
    np.savez(folder / "plain.npz", images=images)
    return folder


@pytest.mark.parametrize(
    ("changes", "sampling", "message"), BAD_INPUT, ids=[message for _, _, message in BAD_INPUT]
)
def test_bad_input_is_named_in_a_line_and_leaves_no_trace(
    workdir, files, changes, sampling, message
):
    changes = {
        name: value.format(folder=files) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    config = settings(changes.pop("task", "inpaint"), sampling, **changes)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    with pytest.raises(UserError) as error:
        edit.edit(config, workdir)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_an_edit_takes_no_other_settings_and_is_no_other_experiment(workdir):
    config = settings("inpaint")
    config.seed = 3
    with pytest.raises(UserError, match="edit takes only config.editing"):
        edit.edit(config, workdir)
    no_classes = settings("translate")
    no_classes.data.num_classes = 0
    with pytest.raises(UserError, match="this run has none"):
        edit.check_editing(no_classes)
