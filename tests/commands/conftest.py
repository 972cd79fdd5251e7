"""Two tiny runs, trained once a process of the tests, and what the commands' tests share."""

import pytest
from tiny import mlp_config, tiny_config, without_pictures

from diffusion_jax.commands import train
from diffusion_jax.runs.config import use


def train_without_pictures(config, folder):
    with without_pictures():
        train.train(config, folder)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """A U-Net of four steps, without pictures."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    train_without_pictures(tiny_config(num_steps=4, eval_every=0), folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """(config, workdir) of eight steps of a perceptron in one go, with held-out losses."""
    config, workdir = mlp_config(), tmp_path_factory.mktemp("undisturbed") / "run"
    train.train(config, workdir)
    return config, workdir


@pytest.fixture(scope="session")
def improved(tmp_path_factory):
    """A perceptron with learned variance, the hybrid loss, importance-sampled t, labels dropped."""
    folder = tmp_path_factory.mktemp("improved") / "run"
    config = mlp_config(num_steps=4, eval_every=0)
    config.model.learned_variance = True
    config.diffusion.loss = "hybrid"
    config.conditioning = use("label", dropout=0.2)
    train_without_pictures(config, folder)
    return folder


@pytest.fixture
def newest():
    """A run's folder -> the newest of its folders of samples."""

    def find(workdir):
        folders = (path for path in (workdir / "samples").iterdir() if path.is_dir())
        return max(folders, key=lambda path: path.stat().st_mtime_ns)

    return find
