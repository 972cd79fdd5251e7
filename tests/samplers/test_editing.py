"""Editing: the laws of its functions, with exact denoisers, and the command `edit`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from tiny import pixels, tiny_config

import main
from diffusion_jax import samplers
from diffusion_jax.commands import edit
from diffusion_jax.core import grids, schedules
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.noise import example_keys, initial_noise
from diffusion_jax.core.types import Level
from diffusion_jax.denoisers import with_eps
from diffusion_jax.runs.build import build
from diffusion_jax.runs.workdir import open_workdir
from diffusion_jax.samplers import editing
from diffusion_jax.training.checkpoint import Checkpoints

KEY = jax.random.key(0)
SCHEDULE = schedules.cosine(1000)
TWO = Mixture(np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2]))
X0 = np.random.default_rng(0).normal(TWO.means[[0, 0, 0, 1, 1, 1, 1, 1]], 0.2)  # eight of its data


def gaussian(mean, std):
    return Mixture(np.ones(1), np.array([[mean, -mean]]), np.array([std]))


def deviation(level, std):
    return np.sqrt(level.alpha**2 * std**2 + level.sigma**2)


def at(grid, i):
    return Level(*(float(a[i]) for a in grid))


# image_to_image


@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_image_to_image_has_the_law_of_a_noised_image_that_flows_back(strength):
    mean, std, count, value = np.array([0.5, -0.5]), 0.4, 4000, 1.5
    grid = grids.logsnr(SCHEDULE, 40)
    keys = example_keys(KEY, np.arange(count))
    run = jax.jit(
        lambda keys: editing.image_to_image(
            samplers.heun(),
            gaussian(0.5, std).denoiser,
            keys,
            jnp.full((count, 2), value),
            grid,
            strength,
        )
    )
    found = np.asarray(run(keys))
    level = at(grid, 40 - round(40 * strength))
    ratio = std / deviation(level, std)  # the flow keeps x's place among the marginal's deviations
    expected = mean + ratio * level.alpha * (value - mean)
    spread = ratio * level.sigma
    np.testing.assert_allclose(found.mean(0), expected, atol=5 * spread / np.sqrt(count))
    np.testing.assert_allclose(
        found.std(0), spread, rtol=5 / np.sqrt(2 * count) + 5e-3
    )  # besides, 40 steps' error


def test_image_to_image_forgets_at_strength_1_and_keeps_near_0():
    grid, keys = grids.logsnr(SCHEDULE, 20), example_keys(KEY, np.arange(8))

    @functools.partial(jax.jit, static_argnums=1)
    def varied(x0, strength):
        return editing.image_to_image(samplers.ancestral(), TWO.denoiser, keys, x0, grid, strength)

    np.testing.assert_allclose(varied(X0, 1.0), varied(-X0, 1.0), atol=1e-2)
    np.testing.assert_allclose(varied(X0, 0.01), X0, atol=0.03)
    assert np.abs(varied(X0, 1.0) - X0).max() > 0.3


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1, np.nan])
def test_a_strength_is_above_0_and_at_most_1(strength):
    with pytest.raises(ValueError, match="strength"):
        editing.noised(KEY[None], np.zeros((1, 2)), grids.uniform(SCHEDULE, 5), strength)


# reconstruct, translate


@pytest.mark.parametrize(("sampler", "order"), [(samplers.ddim(), 1), (samplers.heun(), 2)])
def test_a_reconstructions_error_falls_at_the_samplers_order(x64, sampler, order):
    errors = []
    for num_steps in (80, 160):
        grid = grids.logsnr(SCHEDULE, num_steps + 1)
        _, found = jax.jit(
            lambda x0, grid=grid: editing.reconstruct(TWO.denoiser, x0, grid, sampler)
        )(X0)
        errors.append(np.sqrt(np.mean((found - X0) ** 2)))
    assert errors[1] < (0.1, 2e-3)[order - 1]
    assert np.log2(errors[0] / errors[1]) > order - 0.3


def test_a_latent_is_the_image_at_the_cleanest_level_carried_up_by_the_flow(x64):
    """On a grid whose cleanest level is noisy, so that it shows where the image stands."""
    whole, std = grids.logsnr(SCHEDULE, 200), 0.4
    grid = grids.truncated(whole, stop=400)
    x0 = np.array([[0.3, -0.7], [0.9, 0.1]])
    run = jax.jit(
        lambda x0: editing.reconstruct(gaussian(0.5, std).denoiser, x0, grid, samplers.heun_flow())
    )
    latent, found = run(x0)
    low, high, mean = at(grid, -1), at(grid, 0), np.array([0.5, -0.5])
    assert low.alpha < 0.9
    expected = high.alpha * mean + deviation(high, std) / deviation(low, std) * low.alpha * (
        x0 - mean
    )
    np.testing.assert_allclose(latent, expected, atol=1e-3)
    np.testing.assert_allclose(found, x0, atol=1e-3)


@pytest.mark.parametrize("name", edit.INVERTIBLE)
def test_the_command_allows_samplers_that_can_be_inverted(name):
    x0, grid = np.array([[0.3, -0.7], [0.9, 0.1]]), grids.logsnr(SCHEDULE, 101)
    sampler = samplers.SAMPLERS[name]()
    _, found = jax.jit(
        lambda x0: editing.reconstruct(gaussian(0.5, 0.4).denoiser, x0, grid, sampler)
    )(x0)
    np.testing.assert_allclose(found, x0, atol=0.1 if name in ("ddim", "euler") else 2e-3)


def test_translation_maps_quantiles_to_quantiles_and_back():
    x0 = np.array([[0.3, -0.7], [0.9, 0.1], [0.5, -0.5]])
    source, target = gaussian(0.5, 0.4).denoiser, gaussian(-1.0, 0.1).denoiser
    grid, sampler = grids.logsnr(SCHEDULE, 200), samplers.heun_flow()
    found = jax.jit(lambda x0: editing.translate(source, target, x0, grid, sampler))(x0)
    mean, new_mean = np.array([0.5, -0.5]), np.array([-1.0, 1.0])
    np.testing.assert_allclose(found, new_mean + 0.1 / 0.4 * (x0 - mean), atol=3e-3)
    back = jax.jit(lambda x: editing.translate(target, source, x, grid, sampler))(found)
    np.testing.assert_allclose(back, x0, atol=5e-3)


# interpolate


def test_interpolation_turns_evenly_from_end_to_end():
    a, b = np.zeros((2, 2, 1), np.float32), np.zeros((2, 2, 1), np.float32)
    a[0, 0], b[1, 0] = 3.0, 3.0
    fractions = np.array([0.0, 0.25, 0.5, 1.0])
    found = np.asarray(editing.interpolate(a, b, fractions))
    assert found.shape == (4, 2, 2, 1)
    np.testing.assert_allclose(found[[0, -1]], [a, b], atol=1e-6)
    np.testing.assert_allclose(np.sqrt((found**2).sum((1, 2, 3))), 3.0, rtol=1e-6)
    angle = np.arccos(np.clip(np.einsum("fijk,ijk->f", found, a) / 9, -1, 1))
    np.testing.assert_allclose(angle, np.pi / 2 * fractions, atol=1e-3)
    unequal = np.asarray(editing.interpolate(a, 2 * b + a, np.array([0.0, 1.0])))
    np.testing.assert_allclose(unequal, [a, 2 * b + a], atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0, 1.0 + 1e-6, -1.0, 0.0])
def test_interpolation_is_finite_where_latents_are_parallel(factor):
    a = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    b = np.float32(factor) * a
    found = np.asarray(editing.interpolate(a, b, np.linspace(0, 1, 5)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[[0, -1]], [a, b], atol=1e-5)
    if factor > 0:
        np.testing.assert_allclose(found[2], (a + b) / 2, rtol=1e-5)


# repaint

COVARIANCE, MEAN = np.array([[1.0, 0.8], [0.8, 1.0]]), np.array([0.5, -0.5])


def correlated(x, level):
    """The exact denoiser of N(MEAN, COVARIANCE)."""
    gain = (
        level.alpha
        * COVARIANCE
        @ jnp.linalg.inv(level.alpha**2 * COVARIANCE + level.sigma**2 * jnp.eye(2))
    )
    return with_eps(MEAN + (x - level.alpha * MEAN) @ gain.T, x, level)


def paint(sampler, grid, count, resamples):
    keys = example_keys(KEY, np.arange(count))
    x_init = initial_noise(example_keys(jax.random.key(1), np.arange(count)), (2,), at(grid, 0))
    x0, mask = jnp.full((count, 2), 1.0), np.array([1, 0])
    run = lambda keys, x_init: editing.inpaint(
        sampler, correlated, keys, x_init, x0, mask, grid, resamples
    )
    return np.asarray(jax.jit(run)(keys, x_init))


def test_repainting_draws_from_the_conditional_distribution():
    count = 2000
    found = paint(samplers.ancestral("fixed_large"), grids.respaced(SCHEDULE, "25"), count, 30)
    np.testing.assert_array_equal(found[:, 0], 1.0)
    mean, variance = -0.5 + 0.8 * (1.0 - 0.5), 1 - 0.8**2
    error = np.sqrt(variance / count)
    np.testing.assert_allclose(
        found[:, 1].mean(), mean, atol=4 * error + 0.01
    )  # besides, of 25 levels and 30 times
    np.testing.assert_allclose(
        found[:, 1].var(), variance, atol=4 * np.sqrt(2 / count) * variance + 0.01
    )


def repainted_moments(grid, resamples):
    """Mean and variance of the painted number under ancestral("fixed_large"), step by step in
    float64."""
    mean, covariance = np.zeros(2), np.eye(2)
    for i in range(len(grid.t) - 1):
        t, s = at(grid, i), at(grid, i + 1)
        r = t.alpha**2 * s.sigma**2 / (t.sigma**2 * s.alpha**2)  # DDPM's posterior
        gain = (
            t.alpha * COVARIANCE @ np.linalg.inv(t.alpha**2 * COVARIANCE + t.sigma**2 * np.eye(2))
        )
        matrix = r * s.alpha / t.alpha * np.eye(2) + s.alpha * (1 - r) * gain
        shift, fresh = s.alpha * (1 - r) * (MEAN - t.alpha * gain @ MEAN), t.sigma**2 * (1 - r)
        for u in range(resamples):
            mean, covariance = (
                matrix @ mean + shift,
                matrix @ covariance @ matrix.T + fresh * np.eye(2),
            )
            mean[0], covariance = s.alpha * 1.0, np.diag([s.sigma**2, covariance[1, 1]])
            if u < resamples - 1:
                ratio = t.alpha / s.alpha
                mean, covariance = ratio * mean, ratio**2 * covariance + fresh * np.eye(2)
    last = at(grid, -1)
    gain = (
        last.alpha
        * COVARIANCE
        @ np.linalg.inv(last.alpha**2 * COVARIANCE + last.sigma**2 * np.eye(2))
    )
    return (MEAN + gain @ (mean - last.alpha * MEAN))[1], (gain @ covariance @ gain.T)[1, 1]


def test_repainting_takes_the_steps_of_algorithm_1():
    grid, count, resamples = grids.respaced(SCHEDULE, "6"), 8000, 3
    found = paint(samplers.ancestral("fixed_large"), grid, count, resamples)[:, 1]
    mean, variance = repainted_moments(grid, resamples)
    np.testing.assert_allclose(found.mean(), mean, atol=4 * np.sqrt(variance / count))
    np.testing.assert_allclose(found.var(), variance, rtol=4 * np.sqrt(2 / count))


def test_repainting_starts_a_method_with_a_memory_anew_in_every_step():
    grid = grids.respaced(SCHEDULE, "8")
    expected = paint(samplers.ddim(), grid, 5, 3)  # UniPC's first step is DDIM's
    np.testing.assert_allclose(paint(samplers.unipc(), grid, 5, 3), expected, atol=1e-3)


def test_a_step_is_taken_once_or_more():
    with pytest.raises(ValueError, match="1 time or more"):
        editing.repaint(samplers.ddim(), np.zeros((1, 2)), np.ones(2), 0)


# The command


def run_config():
    config = tiny_config(label_dropout=0.2)
    config.diffusion.prediction = "v"
    return config


def small_network(config):
    """(apply_fn, init_params) of a function of every pixel and the class, which compiles at
    once."""

    def apply_fn(params, x, t, cond=None, dropout_key=None):
        return -jnp.tanh(x + params["shift"][cond][:, None, None, None])  # x0 leaves [-1, 1]

    return apply_fn, lambda key: {"shift": jax.random.normal(key, (11,))}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of the small network."""
    config, folder = run_config(), tmp_path_factory.mktemp("editing") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_jax.runs.build.network", small_network)
        open_workdir(folder, config)
        checkpoints = Checkpoints(folder)
        checkpoints.save(build(config).init_state(KEY), {}, wait=True)
        checkpoints.close()
        yield folder


def settings(task, sampling=(), **editing_settings):
    config = run_config()
    if task in edit.INVERTING:
        config.sampling = dataclasses.replace(
            config.sampling, sampler="heun_flow", grid="logsnr", steps="4"
        )
    config.sampling = dataclasses.replace(config.sampling, **dict(sampling))
    config.editing = dataclasses.replace(
        config.editing, task=task, **({"num": 4} | editing_settings)
    )
    return config


def edited(config, workdir):
    folder = edit.edit(config, workdir)
    return folder, tiny.arrays(folder / "edits.npz")


def digits(count):
    source = edit.sources.digits("test")
    return source.images[:count], source.labels[:count]


def test_inpaint_keeps_the_known_pixels_and_shows_them(workdir, capsys):
    flags = ("--config.editing.mask=left", "--config.editing.num=4", "--config.editing.resamples=2")
    main.run(["main.py", "edit", "--workdir", str(workdir), *flags])
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
    folder, guided = edited(settings("translate", {"steps": "20", "guidance": 3.0}, num=1), workdir)
    assert "guidance3" in folder.name
    assert (guided["results"] != arrays["results"][:1]).any()


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
    ({"num": 0}, {}, "config.editing.num must be above 0, not 0"),
    ({"resamples": 0}, {}, "config.editing.resamples must be above 0"),
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
        {"sampler": "ddim", "eta": 0.5},
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
        edit.check(no_classes)
