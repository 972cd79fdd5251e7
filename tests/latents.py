"""A run of latents in tests: the digits by an autoencoder of random weights, f = 2."""

import pathlib

import jax
import numpy as np
from tiny import ROOT

from diffusion_jax.interop import autoencoder_names, files
from diffusion_jax.models.autoencoder import Autoencoder
from diffusion_jax.runs.autoencoders import open_autoencoder

AUTOENCODER = Autoencoder(
    1, latent=2, moments=4, channels=4, channel_mult=(1, 1), blocks=1, attention=False
)
LATENT_FILE = """
import sys
sys.path.insert(0, {tests!r})
from tiny import mlp_config, use


def get_config():
    config = mlp_config()
    config.codec = use("autoencoder", weights={weights!r}, factor=2, latent=2)
    return config
"""


def weights_file(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """The file, with weights of AUTOENCODER as CompVis names them."""
    init = lambda key: AUTOENCODER.init(key, np.zeros((1, 8, 8, 1), np.float32))["params"]
    params = jax.jit(init)(jax.random.key(seed))
    files.write_safetensors(path, autoencoder_names.to_names(params, AUTOENCODER, "compvis"))
    return path


def latent_experiment(folder: pathlib.Path) -> pathlib.Path:
    """An experiment file of a run of latents, beside its weights."""
    weights = weights_file(folder / "autoencoder.safetensors")
    path = folder / "latent.py"
    path.write_text(LATENT_FILE.format(tests=str(ROOT / "tests"), weights=str(weights)))
    return path


def moments_of(weights: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of uint8 images, float32 [N, 4, 4, 4]."""
    coder = open_autoencoder("", str(weights))
    return np.asarray(coder.encode(coder.params, images / np.float32(127.5) - 1))
