"""What a run of latents knows of its autoencoder: which one, the mean and deviation of its latents,
and the images that latents were made of."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax.codecs import Codec
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.latents import LEAST, MOST
from diffusion_jax.data import pipeline, report
from diffusion_jax.data.latents import read_index
from diffusion_jax.devices.parallel import equal_batches, map_examples, place, precision
from diffusion_jax.runs.autoencoders import AUTOENCODERS
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.registry import Component
from diffusion_jax.runs.settings import copy, load

CODEC, SOURCE = "autoencoder", "latents"  # entries of their registries
KEPT = ("mean", "deviation", "sha256")  # what a run keeps that its config left open
BATCH = 64  # images that are encoded together


def of_latents(config: Config) -> bool:
    """Whether the data are latents already."""
    return config.data.source.entry == SOURCE


def check_kept(config: Config, source: Any = None) -> None:
    """Raises UserError where latents have no codec that reads them, or are those of another
    autoencoder than the run's."""
    if not of_latents(config):
        return
    if config.codec.entry != CODEC:
        raise UserError(f"latents are read by config.codec={CODEC}, not by {config.codec.entry}")
    own = config.codec.sha256
    if source is not None and own and source.autoencoder != own:
        raise UserError(
            f"{source.folder} holds latents of another autoencoder: its parameters' SHA-256 is "
            f"{source.autoencoder[:12]}..., not {own[:12]}..."
        )


def as_stored(config: Config, workdir: pathlib.Path) -> Config:
    """The config, with what it leaves open of its codec and of what it starts from as the run in
    the workdir has it."""
    leaves_open = config.codec.entry == CODEC or config.training.init
    if not leaves_open or not (workdir / "config.json").is_file():
        return config
    stored, config = load(workdir / "config.json"), copy(config)
    if config.training.init == stored.training.init:
        config.training.init_sha256 = config.training.init_sha256 or stored.training.init_sha256
    if config.codec.entry == stored.codec.entry == CODEC:
        for name in KEPT:
            if not getattr(config.codec, name):
                setattr(config.codec, name, getattr(stored.codec, name))
    return config


def with_statistics(config: Config, source: Any, codec: Codec) -> Config:
    """The config, with the autoencoder's SHA-256 and, where they are empty, the mean and the
    deviation of the latents by channel: those that were kept with the latents, or of up to 10,000
    images of the source."""
    if config.codec.entry != CODEC:
        return config
    config = copy(config)
    own = config.codec
    own.sha256 = own.sha256 or AUTOENCODERS.open(own.run, own.weights).sha256
    _ = codec.params  # which compares it
    check_kept(config, source)
    if not own.mean or not own.deviation:
        found = source.statistics if of_latents(config) else measured(codec, source)
        own.mean, own.deviation = (tuple(float(f"{v:.6g}") for v in values) for values in found)
    return config


class Moments:
    """Sums of latents by channel, from which their mean and deviation come.

    The deviation is that of draws: by the law of total variance the variance of the means and the
    mean of the variances, in float64."""

    def __init__(self, latent: int):
        self.latent, self.count = latent, 0
        self.sum, self.squares = np.zeros(latent), np.zeros(latent)

    def add(self, moments: np.ndarray) -> None:
        """moments: [B, h, w, latent or 2 latent]."""
        flat = moments.reshape(-1, moments.shape[-1]).astype(np.float64)
        mean, log_variance = flat[:, : self.latent], flat[:, self.latent :]
        self.count += len(flat)
        self.sum += mean.sum(axis=0)
        self.squares += np.square(mean).sum(axis=0)
        if log_variance.size:
            self.squares += np.exp(np.clip(log_variance, LEAST, MOST)).sum(axis=0)

    def statistics(self) -> tuple[list[float], list[float]]:
        mean = self.sum / self.count
        deviation = np.sqrt(np.maximum(self.squares / self.count - mean**2, 1e-12))
        return mean.tolist(), deviation.tolist()


def make_encode(codec: Codec) -> Any:
    """images uint8 [b, H, W, C] -> moments float32 [b, *kept], on all devices of all processes."""
    assert codec.moments is not None
    mapped, params = map_examples(codec.moments), place(codec.params)

    def encode(images: np.ndarray) -> np.ndarray:
        with precision(None):
            return mapped(params, images)

    return encode


def measured(codec: Codec, source: Any) -> tuple[Any, Any]:
    """(mean, deviation) of the latents by channel, of up to 10,000 images evenly spread."""
    encode, sums, index = make_encode(codec), Moments(codec.shape[-1]), report.spread(source)
    for chosen, kept in equal_batches(len(index), min(BATCH, len(index))):
        images = pipeline.examples(source, index[chosen])["image"]
        sums.add(encode(images)[:kept])
    return sums.statistics()


def before_step(codec: Codec) -> Callable[[Any], Any]:
    """batch -> the batch that a training step sees: with moments in place of images where the codec
    encodes these, by a program of its own on the process's first device."""
    if codec.moments is None:
        return lambda batch: batch
    encode = jax.jit(codec.moments)

    def of(batch: Any) -> Any:
        data = batch["image"]
        if data.shape[1:] == codec.kept:
            return batch
        with precision(None):
            return {**batch, "image": np.asarray(encode(codec.params, data))}

    return of


class Encoded:
    """Batches that `before` changes, an iterator with a state as theirs."""

    def __init__(self, batches: Any, before: Callable[[Any], Any]):
        self.batches, self.before = batches, before
        self.get_state, self.set_state = batches.get_state, batches.set_state

    def __next__(self) -> Any:
        return self.before(next(self.batches))


def of_images(config: Config) -> Config:
    """The config, whose source is that of the images where it is one of latents."""
    if not of_latents(config):
        return config
    index = read_index(pathlib.Path(config.data.source.folder).expanduser(),
                       config.data.train_split)  # fmt: skip
    config, values = copy(config), index["data"]
    config.data.source = Component(
        values["entry"], {name: value for name, value in values.items() if name != "entry"}
    )
    return config


def assumed(config: Config) -> Config:
    """The config with some statistics where they are not measured yet, for what does not depend on
    them, such as a plan."""
    if config.codec.entry == CODEC:
        config = copy(config)
        config.codec.mean = config.codec.mean or (0.0,) * config.codec.latent
        config.codec.deviation = config.codec.deviation or (1.0,) * config.codec.latent
    return config
