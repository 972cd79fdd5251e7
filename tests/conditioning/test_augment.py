"""EDM's augmentations against table 6 of its paper, written down once more in float64, and against
closed-form images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from problems import problem
from tiny import mlp_config, tiny_config, without_pictures

from diffusion_jax.commands import train as loop
from diffusion_jax.commands.export_weights import export_weights
from diffusion_jax.commands.sample import sample
from diffusion_jax.conditioning import augmentation, joined, label
from diffusion_jax.conditioning.augment import augment, draw, transform
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import fold_in
from diffusion_jax.core.types import Kind
from diffusion_jax.data import pipeline, sources
from diffusion_jax.data.spec import Declared
from diffusion_jax.interop.state_dicts import to_torch_names
from diffusion_jax.models.unet import UNet
from diffusion_jax.objectives import Context, noised
from diffusion_jax.objectives.denoising import of_loss
from diffusion_jax.runs import settings
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.open import weak_params
from diffusion_jax.runs.workdir import open_workdir
from diffusion_jax.training.checkpoint import Checkpoints

HEIGHT, WIDTH = 40, 48
apply_transform, apply_augment = jax.jit(transform), jax.jit(augment)


def scale(x, y):
    return np.diag([x, y, 1.0])


def rotate(angle):
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def translate(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


def table_6(a, height, width):
    """Where the transformations, in the table's order, take (x, y, 1), from the centre in pixels, y
    down."""
    s, r = 2 ** (0.2 * a[2]), 2 ** (0.2 * a[5])
    matrices = [scale(1 - 2 * a[0], 1), scale(1, 1 - 2 * a[1]), scale(s, s), rotate(-a[3])]
    matrices += [
        rotate(a[4]) @ scale(r, 1 / r) @ rotate(-a[4]),
        translate(a[6] * width / 8, a[7] * height / 8),
    ]
    return np.linalg.multi_dot(matrices[::-1])


def centred(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([x - (width - 1) / 2, y - (height - 1) / 2, np.ones((height, width))], -1)


def blobs(points):
    """Two lopsided Gaussians in two channels; about 0 at the borders. points: [..., 3]."""
    x, y = points[..., 0], points[..., 1]
    first = ((x - 6) ** 2 + 0.5 * (x - 6) * (y + 4) + 0.5 * (y + 4) ** 2) / 20
    second = ((x + 5) ** 2 + (x + 5) * (y + 2) + 2 * (y + 2) ** 2) / 30
    return np.stack([np.exp(-first), 0.7 * np.exp(-second)], -1)


def fold(u, size):
    """A coordinate from the centre brought back into an image that goes on as its own mirror
    image."""
    return size / 2 - np.abs((u + size / 2) % (2 * size) - size)


def expected(a):
    points = centred(HEIGHT, WIDTH) @ np.linalg.inv(table_6(a, HEIGHT, WIDTH)).T
    return blobs(np.stack([fold(points[..., 0], WIDTH), fold(points[..., 1], HEIGHT)], -1))


IMAGE = blobs(centred(HEIGHT, WIDTH)).astype(np.float32)
ONE_BY_ONE = [
    (1,),
    (0, 1),
    (0, 0, -2),
    (0, 0, 1.5),
    (0, 0, 0, 0.7),
    (0, 0, 0, -2.5),
    (0, 0, 0, 0, 0.5, 1.5),
    (0, 0, 0, 0, 2, -1),
]
ONE_BY_ONE += [
    (0, 0, 0, 0, 0, 0, 0.9),
    (0, 0, 0, 0, 0, 0, 0, -1.3),
    (1, 0, 0.8, 2.0, -1.0, 1.2, 0.3, 3.0),
    (1, 1, -1, -0.4, 3, 1, 1, 1),
]


@pytest.mark.parametrize("a", ONE_BY_ONE, ids=str)
def test_transformations_are_those_of_the_table(a):
    a = np.pad(np.array(a, np.float32), (0, 8 - len(a)))
    np.testing.assert_allclose(apply_transform(IMAGE, a), expected(a), atol=0.015)


def test_the_conditioning_tells_what_was_done():
    keys = jax.random.split(jax.random.key(0), 64)
    images, told = map(np.asarray, apply_augment(keys, np.tile(IMAGE, (64, 1, 1, 1)), 0.6))
    assert told.shape == (64, 9)
    assert all(np.unique(column).size > 1 for column in told.T)
    for image, (a0, a1, a2, cos, sin, x, y, a6, a7) in zip(images, told, strict=True):
        # table 6 leaves the sign of a5 open: (a4, a5) and (a4 + pi, -a5) are told alike
        candidates = [
            expected(
                [
                    a0,
                    a1,
                    a2,
                    np.arctan2(sin, cos + 1),
                    np.arctan2(y, x) + turn,
                    sign * np.hypot(x, y),
                    a6,
                    a7,
                ]
            )
            for sign, turn in ((1, 0), (-1, np.pi))
        ]
        assert min(np.abs(image - candidate).max() for candidate in candidates) < 0.03


def test_a_quarter_turn_and_whole_pixels_are_numpys():
    square = blobs(centred(40, 40)).astype(np.float32)
    turned = apply_transform(square, np.array([0, 0, 0, np.pi / 2, 0, 0, 0, 0], np.float32))
    np.testing.assert_allclose(turned, np.rot90(square), atol=2e-3)
    moved = apply_transform(
        square, np.array([0, 0, 0, 0, 0, 0, 0.6, -0.4], np.float32)
    )  # 3 to the right, 2 up
    np.testing.assert_allclose(moved[:-2, 3:], np.roll(square, (-2, 3), (0, 1))[:-2, 3:], atol=2e-3)


def test_the_borders_are_mirrored_as_scipys():
    rng = np.random.default_rng(0)
    image = scipy.ndimage.gaussian_filter(rng.normal(size=(HEIGHT, WIDTH)), 2.0, mode="reflect")
    image /= np.abs(image).max()
    a = np.array([0, 0, -2.0, 0.8, 0.3, 1.0, 1.5, -2.5], np.float32)
    back = np.linalg.inv(table_6(a, HEIGHT, WIDTH))[[1, 0, 2]][:, [1, 0, 2]]  # of (row, column)
    centre = translate((HEIGHT - 1) / 2, (WIDTH - 1) / 2)
    reference = scipy.ndimage.affine_transform(
        image, centre @ back @ np.linalg.inv(centre), order=3, mode="reflect"
    )
    result = apply_transform(np.repeat(image[..., None], 2, -1).astype(np.float32), a)[..., 0]
    np.testing.assert_allclose(result, reference, atol=0.05)
    assert np.sqrt(np.mean((result - reference) ** 2)) < 0.01


def test_waves_go_on_beyond_the_borders():
    wave = lambda x, y: (
        np.cos(5 * np.pi * (x + 0.5) / WIDTH) * np.cos(3 * np.pi * (y + 0.5) / HEIGHT)
    )  # its own mirror image
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = np.repeat(wave(x, y)[..., None], 2, -1).astype(np.float32)
    result = apply_transform(
        image, np.array([0, 0, 0, 0, 0, 0, 0.3, -2.2], np.float32)
    )  # 1.8 to the right, 11 up
    np.testing.assert_allclose(result[..., 0], wave(x - 1.8, y + 11), atol=0.01)


def test_even_images_stay_even_and_fine_detail_stays():
    a = np.array([0, 0, 0.5, 1.0, 0, 0.7, 0.3, 0.4], np.float32)
    np.testing.assert_allclose(apply_transform(np.full_like(IMAGE, -0.8), a), -0.8, atol=1e-5)
    x = np.arange(WIDTH)
    wave = lambda x: np.broadcast_to(np.cos(np.pi / 2 * x)[:, None], (HEIGHT, WIDTH, 2)).astype(
        np.float32
    )
    moved = apply_transform(
        wave(x), np.array([0, 0, 0, 0, 0, 0, 0.25 / 6, 0], np.float32)
    )  # by a quarter of a pixel
    # bilinear between whole pixels would leave 0.79 of four pixels' waves
    assert (
        np.sum(moved[:, 8:40] * wave(x - 0.25)[:, 8:40]) / np.sum(wave(x - 0.25)[:, 8:40] ** 2)
        > 0.9
    )


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3)])
def test_the_smallest_images_have_borders_too(shape):
    image = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    result = transform(image, np.array([0, 0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], np.float32))
    assert result.shape == shape
    assert np.isfinite(result).all()


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_what_is_at_most_mirrored_is_returned_bit_for_bit(probability):
    x0 = np.random.default_rng(0).uniform(-1, 1, (200, 8, 6, 3)).astype(np.float32)
    images, told = map(
        np.asarray, apply_augment(jax.random.split(jax.random.key(1), 200), x0, probability)
    )
    exact = (told[:, 2:] == 0).all(1)
    assert exact.all() if probability == 0 else 0.1 < exact.mean() < 0.5  # 0.7^4 is 0.24
    kinds = set()
    for before, after, (left_right, top_bottom) in zip(
        x0[exact], images[exact], told[exact, :2], strict=True
    ):
        before = before[:, ::-1] if left_right else before
        np.testing.assert_array_equal(after, before[::-1] if top_bottom else before)
        kinds.add((left_right, top_bottom))
    assert len(kinds) == (2 if probability == 0 else 4)
    assert all(
        (after != before).any() for before, after in zip(x0[~exact], images[~exact], strict=True)
    )


def test_each_transformation_has_its_frequency_and_its_distribution():
    size, p = 20000, 0.12
    a = np.asarray(draw(jax.random.split(jax.random.key(2), size), p))
    on = a != 0
    np.testing.assert_array_equal(on[:, 4], on[:, 5])
    np.testing.assert_array_equal(on[:, 6], on[:, 7])
    for column, share in zip(on[:, [0, 1, 2, 3, 5, 6]].T, (0.5, p / 2, p, p, p, p), strict=True):
        assert abs(column.mean() - share) < 4 * np.sqrt(share * (1 - share) / size)
    assert np.abs(np.corrcoef(on[:, [0, 1, 2, 3, 5, 6]].T) - np.eye(6)).max() < 4.5 / np.sqrt(size)
    assert set(np.unique(a[:, :2])) == {0.0, 1.0}
    normal, angle = scipy.stats.norm(), scipy.stats.uniform(-np.pi, 2 * np.pi)
    for i, law in {2: normal, 3: angle, 4: angle, 5: normal, 6: normal, 7: normal}.items():
        assert scipy.stats.kstest(a[on[:, i], i], law.cdf).pvalue > 1e-3, i
    # and all values are each other's strangers
    both = np.asarray(draw(jax.random.split(jax.random.key(3), size), 1.0))
    assert np.abs(np.corrcoef(both.T) - np.eye(8)).max() < 4.5 / np.sqrt(size)


def test_an_example_does_not_depend_on_its_batch():
    keys, x0 = (
        jax.random.split(jax.random.key(4), 6),
        np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32),
    )
    together = apply_augment(keys, x0, 0.7)
    alone = [apply_augment(keys[i : i + 1], x0[i : i + 1], 0.7) for i in range(6)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert len(np.unique(together[1], axis=0)) == 6


def test_the_loss_meets_augmented_images_with_the_same_noise_and_labels():
    labels = label(Declared((8, 8, 1), 10), 0.5)
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8),
        "label": np.arange(32) % 10,
    }
    keys, t = jax.random.split(jax.random.key(5), 32), jnp.zeros(32, int)

    def met(*conditioners):
        one = problem((8, 8, 1), conditioner=joined(conditioners))
        run = lambda keys: noised(one, Context(None, None, 0, keys, t, jnp.ones(32)), batch)
        return jax.jit(run)(keys)

    found, plain = met(labels, augmentation(0.5)), met(labels)
    assert set(plain.cond) == {"label"}
    np.testing.assert_array_equal(found.eps, plain.eps)
    np.testing.assert_array_equal(found.cond["label"], plain.cond["label"])
    pixels = np.float32(batch["image"])
    np.testing.assert_allclose(plain.x0, pixels / 127.5 - 1, atol=1e-6)
    images, told = jax.jit(augment, static_argnums=2)(fold_in(keys, 2), pixels, 0.5)
    np.testing.assert_allclose(found.x0, images / 127.5 - 1, atol=1e-5)
    np.testing.assert_allclose(found.cond["augmentation"], told, atol=1e-6)


def augmented(probability=0.5, make=mlp_config, **training):
    config = make(**training)
    config.data.flip = False
    config.conditioning = ["label", use("augmentation", probability=probability)]
    return config


def test_the_network_has_one_more_layer():
    config = augmented()
    plain = settings.copy(config)
    plain.conditioning = "label"
    params, without = (
        jax.jit(build(one).init_params)(jax.random.key(0)) for one in (config, plain)
    )
    layer = params.pop("augmentation")
    assert jax.tree.map(jnp.shape, layer) == {"kernel": (9, 64)}
    jax.tree.map(np.testing.assert_array_equal, params, without)


def test_nothing_enters_a_network_at_zero_and_every_number_does():
    network = UNet(
        out_channels=1,
        channels=8,
        channel_mult=(1,),
        blocks=1,
        attention_factors=(),
        kinds=(("augmentation", Kind("vector", 9)),),
    )
    x, t = jnp.ones((1, 4, 4, 1)), jnp.ones(1)
    params = jax.jit(network.init)(jax.random.key(0), x, t, {"augmentation": jnp.zeros((1, 9))})
    params = jax.tree.map(lambda a: a + 0.1, params)  # layers begin at zero
    run = jax.jit(lambda cond: network.apply(params, x, t, cond))
    nothing = run({})
    np.testing.assert_array_equal(nothing, run({"augmentation": jnp.zeros((1, 9))}))
    told = [run({"augmentation": jnp.eye(9)[i : i + 1]}) for i in range(9)]
    assert all((nothing != one).any() for one in told)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of an augmented run of eight steps."""
    workdir = tmp_path_factory.mktemp("runs") / "augmented"
    with without_pictures():
        loop.train(augmented(), workdir)
    return workdir


def final_state(workdir):
    parts = build(augmented())
    return parts, Checkpoints(workdir, read_only=True).restore(
        jax.eval_shape(parts.init_state, jax.random.key(0))
    )


def test_all_nine_numbers_reach_the_network_in_training(trained):
    parts, reference = final_state(trained)
    first = parts.init_state(jax.random.split(jax.random.key(0))[0]).params["augmentation"][
        "kernel"
    ]
    changed = np.asarray(reference[0].params["augmentation"]["kernel"]) != np.asarray(first)
    assert changed.all()


def test_an_augmented_run_draws_and_is_measured_without(
    trained, tmp_path, monkeypatch, no_pictures
):
    folder = sample(augmented(), trained)
    assert np.load(folder / "samples.npz")["images"].shape == (20, 8, 8, 1)

    mean = lambda network, x0, eps, level, cond: x0.mean((1, 2, 3))
    with_mean = lambda parts: parts._replace(objective=of_loss(parts.problem, mean))
    monkeypatch.setattr(loop, "build", lambda config: with_mean(build(config)))
    run, state = loop.begin(augmented(), tmp_path / "run")
    run.checkpoints.close()
    run.log.close()
    batch = pipeline.examples(sources.digits("test"), range(24))
    means = (batch["image"] / 127.5 - 1).mean((1, 2, 3))
    assert run.evaluate(state.params, state.aux) == pytest.approx(means.mean(), abs=1e-6)
    keys = jax.random.split(jax.random.key(0), 24)
    given = Context(run.parts.apply_fn, None, 0, keys, np.zeros(24, int), np.ones(24))
    loss = jax.jit(lambda batch: run.parts.objective.loss((), (), given, batch)[0])
    assert 4 < np.sum(np.abs(loss(batch) - means) > 1e-3) < 24


@pytest.mark.parametrize("probability", [0.0, 1.5, -0.1])
def test_a_probability_is_above_0_and_at_most_1(probability):
    message = f"config.conditioning.augmentation: probability must be above 0 .*, not {probability}"
    with pytest.raises(UserError, match=message):
        build(augmented(probability))


def test_flips_are_its_own():
    config = augmented()
    config.data.flip = True
    with pytest.raises(UserError, match=r"mirrors half of the images .* set data\.flip=false"):
        build(config)


def test_a_stored_config_without_conditioning_has_no_augmentation():
    stored = settings.as_values(mlp_config())
    del stored["conditioning"]
    assert settings.differences(settings.from_values(stored), mlp_config()) == []
    assert settings.differences(mlp_config(), augmented()) == [
        "data.flip: True -> False",
        "conditioning: ('label',) -> ('label', 'augmentation')",
        "conditioning.augmentation.probability: None -> 0.5",
    ]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The workdir of an augmented U-Net that begins with zeros, and was not trained."""
    config, workdir = augmented(make=tiny_config), tmp_path_factory.mktemp("runs") / "unet"
    shapes = jax.eval_shape(build(config).init_state, jax.random.key(0))
    open_workdir(workdir, config)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), {}, wait=True)
    checkpoints.close()
    return workdir


def test_the_layer_is_not_lost_in_others_formats_nor_in_autoguidance(drawn, tmp_path):
    refused = "has a layer 'augmentation', .* conditioning names augmentation"
    with pytest.raises(UserError, match=refused):
        export_weights(drawn, tmp_path / "weights.safetensors")
    assert not list(tmp_path.iterdir())
    parts = build(augmented(make=tiny_config))
    with pytest.raises(UserError, match=refused):
        to_torch_names(jax.eval_shape(parts.init_params, jax.random.key(0)), parts.apply_fn.module)

    config = augmented(0.1, make=tiny_config)  # the same layer
    config.sampling.guidance = 1.0
    config.sampling.guide = use("autoguidance", weak=str(drawn))
    assert "augmentation" in weak_params(config, build(config))
    config.conditioning = "label"
    with pytest.raises(UserError, match=r"another network \(conditioning: .* -> \('label',\)"):
        weak_params(config, build(config))
