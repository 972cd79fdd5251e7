"""A run on a folder whose images are trained on in several sizes."""

import numpy as np
import pytest
from PIL import Image
from tiny import curves, mlp_config, tiny_config

from diffusion_jax.commands import train
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.config import use


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """96 images, a third of them four times as wide as high."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    for i in range(96):
        pixels = rng.integers(0, 256, (10, 40) if i % 3 == 0 else (12, 12), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def bucketed(config, photos):
    config.data.source = use("folder", folder=str(photos), buckets=("8x8", "4x16"))
    config.data.num_classes, config.conditioning = 0, ()
    return config


def test_a_run_in_buckets_compiles_its_step_once_a_bucket(
    photos, tmp_path, monkeypatch, no_pictures
):
    traced, make = [], train.make_train_step

    def counting(*arguments, **options):
        step = make(*arguments, **options)
        return lambda state, key, batch: (
            traced.append(batch["image"].shape) or step(state, key, batch)
        )

    monkeypatch.setattr(train, "make_train_step", counting)
    config = bucketed(mlp_config(num_steps=6, eval_every=6, checkpoint_every=6), photos)
    train.train(config, tmp_path / "run")
    assert sorted(traced) == [(16, 4, 16, 1), (16, 8, 8, 1)]
    lines = curves(tmp_path / "run")
    assert np.isfinite([line["loss"] for line in lines if "loss" in line]).all()
    assert np.isfinite(lines[-1]["eval_loss"])
    assert "note: buckets of images: 8 x 8 (" in (tmp_path / "run" / "log.txt").read_text()


def two_steps_a_call(config):
    config.training.steps_per_call, config.training.log_every = 2, 2


def fewer_pixels(config):
    config.data.source.buckets = ("8x8", "4x12")


def two_levels(config):
    config.data.source.buckets = ("8x8", "5x20")
    config.model = use("unet", channels=16, channel_mult=(1, 1), blocks=1, attention_resolutions=())


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (mlp_config, two_steps_a_call, "set config.training.steps_per_call=1"),
        (mlp_config, fewer_pixels, "mlp does not take 4 x 12 with the parameters"),
        (tiny_config, two_levels, "unet does not take 5 x 20: images of 5 x 20 cannot be halved"),
    ],
)
def test_what_cannot_train_in_buckets(photos, tmp_path, make, change, message):
    config = bucketed(make(num_steps=2, eval_every=0), photos)
    change(config)
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
