import numpy as np
from PIL import Image

from diffusion_jax.core import schedules
from diffusion_jax.modalities import pictures
from diffusion_jax.runs import plots


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_floats_become_bytes():
    np.testing.assert_array_equal(
        pictures.to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 3.0])), [0, 0, 128, 255, 255]
    )


def test_a_tile_has_a_row_for_every_class_and_rows_fill_to_the_right():
    images = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1)
    np.testing.assert_array_equal(
        pictures.tile(images, rows=2)[1::2, 1::2, 0], [[1, 3, 5], [2, 4, 32]]
    )


def test_a_tile_by_rows_is_read_as_a_page():
    images = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1)
    np.testing.assert_array_equal(
        pictures.tile_by_rows(images, columns=3)[1::2, 1::2, 0], [[1, 2, 3], [4, 5, 32]]
    )


def test_pngs_and_gifs_come_back(tmp_path):
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        picture = rng.integers(0, 256, (6, 9, channels), np.uint8)
        pictures.save(tmp_path / "a.png", picture)
        np.testing.assert_array_equal(pixels(tmp_path / "a.png").reshape(picture.shape), picture)
        pictures.save_gif(tmp_path / "a.gif", [picture, 255 - picture])
        with Image.open(tmp_path / "a.gif") as gif:
            assert gif.n_frames == 2


def test_plots_are_pictures(tmp_path):
    plots.schedule(
        tmp_path / "schedule.png", schedules.cosine(50), schedules.cosine_betas(50), "cosine"
    )
    plots.schedule(tmp_path / "continuous.png", schedules.edm(), None, "edm")
    plots.losses(
        tmp_path / "losses.png",
        [{"step": 1, "loss": 0.5, "loss_q0": 0.4}, {"step": 2, "eval_loss": 0.3}],
    )
    for name in ("schedule", "continuous", "losses"):
        assert pixels(tmp_path / f"{name}.png").shape[1] > 500
