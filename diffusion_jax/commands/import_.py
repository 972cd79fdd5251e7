"""Makes a run of the weights of an Improved DDPM, ADM or DiT checkpoint, or of an autoencoder's.

python main.py import --workdir DIR --config experiments/NAME.py --weights FILE
"""

import pathlib

import jax
import jax.numpy as jnp

from diffusion_jax.core import noise
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.core.types import PyTree
from diffusion_jax.interop import autoencoder_names, dit_names, state_dicts, tiny_names
from diffusion_jax.interop.files import Tensors, read_checkpoint
from diffusion_jax.models.autoencoder import Autoencoder
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.tiny_autoencoder import TinyAutoencoder
from diffusion_jax.runs.autoencoders import infer, read_weights
from diffusion_jax.runs.build import Parts, build
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.latents import CODEC
from diffusion_jax.runs.settings import copy, to_json
from diffusion_jax.runs.workdir import OF_THE_LOCK
from diffusion_jax.training.checkpoint import Checkpoints

FLAGS = {
    "weights": Flag(
        "", "a file of weights, .pt or .safetensors, or a folder", "the file of the weights"
    ),
    "new_attention_order": Flag(False, "q, k and v outermost in a U-Net's attention"),
}
NEEDS = Needs(config=True)
AUTOENCODERS = ("autoencoder", "tiny_autoencoder")


def run(given: Given) -> str:
    """What `main.py import` does with its flags."""
    order = given.flags["new_attention_order"]
    config = import_weights(given.flags["weights"], given.config, given.workdir, order)
    return on_trust(config, given.workdir)


def import_weights(
    path: str | pathlib.Path,
    config: Config,
    workdir: pathlib.Path,
    new_attention_order: bool = False,
) -> Config:
    """Makes a run at step 0 of a file of weights, to sample from or to train on; returns its
    config.

    The architecture, the images' channels and the number of classes are read from the file; all
    else is `config`'s: model.heads or head_channels, the images' size, the schedule and its T, the
    prediction; with conditioning.label.dropout above 0 the last label means "none". The parameters
    and their average are the file's, the optimizer is new. Raises UserError, and writes nothing,
    where they do not fit."""
    workdir = pathlib.Path(workdir)
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run already; choose another --workdir")
    if workdir.is_dir() and {path.name for path in workdir.iterdir()} - set(OF_THE_LOCK):
        raise UserError(f"{workdir} is not empty; choose another --workdir")
    if len(config.data.shape) != 3:
        raise UserError(
            f"config.data.shape must be height, width and channels, not {config.data.shape}"
        )
    if config.model.entry not in ("unet", "dit", *AUTOENCODERS):
        raise UserError(
            "weights are read of a U-Net, a DiT or an autoencoder: config.model must be unet, dit, "
            f"{' or '.join(AUTOENCODERS)}, not {config.model.entry}"
        )
    config, classes = copy(config), config.data.num_classes
    if config.model.entry in AUTOENCODERS:
        tensors = read_weights(pathlib.Path(path).expanduser())
        entry, settings, channels = infer(tensors)
        if entry != config.model.entry:
            raise UserError(f"these are the weights of a network {entry}: set config.model={entry}")
    else:
        tensors = read_checkpoint(path)
        unet = config.model.entry == "unet"
        side = config.data.shape[0]
        side //= config.codec.factor if config.codec.entry == CODEC else 1
        found = state_dicts.infer_model(tensors, side) if unet else None
        settings, channels, classes = found or dit_names.infer_model(tensors)
        dropped = any(one.entry == "label" and one.dropout for one in config.conditioning)
        classes -= classes > 0 and dropped
    config.data.num_classes = classes
    if config.codec.entry != CODEC:
        config.data.shape = (*config.data.shape[:2], channels)
    elif channels != config.codec.latent:
        raise UserError(
            f"the weights are of {channels} channels, but config.codec.latent={config.codec.latent}"
        )
    for name, value in settings.items():
        setattr(config.model, name, value)
    parts = build(config)
    params = jax.tree.map(jnp.asarray, named(tensors, parts, new_attention_order))

    make_folder(workdir)
    checkpoints = Checkpoints(workdir, config.training.keep_checkpoints)
    init_key, key = jax.random.split(noise.key(config.seed))  # as a new run's, in commands/train.py
    state = parts.state_of(params, init_key)
    checkpoints.save(state, {"key": jax.random.key_data(key).tolist()}, wait=True)
    checkpoints.close()
    # last: a folder with a config has its weights
    write_text(workdir / "config.json", to_json(config))
    return config


def named(tensors: Tensors, parts: Parts, new_attention_order: bool) -> PyTree:
    """The parameters of a run's network by the names of its kind of weights."""
    like, network = jax.eval_shape(parts.init_params, jax.random.key(0)), parts.apply_fn.module
    if isinstance(network, DiT):
        return dit_names.from_names(tensors, like, network, *parts.codec.shape[:2])
    if isinstance(network, Autoencoder):
        return autoencoder_names.from_names(tensors, like, network)
    if isinstance(network, TinyAutoencoder):
        return tiny_names.from_names(tensors, like, network)
    return state_dicts.from_torch_names(tensors, like, network, new_attention_order)  # pyright: ignore[reportArgumentType]


def on_trust(config: Config, workdir: pathlib.Path) -> str:
    """What no check of an imported run can tell: a wrong number of heads gives noise, not an
    error."""
    model, diffusion = config.model, config.diffusion
    if model.entry in AUTOENCODERS:
        return f"imported to {workdir}; nothing is taken on trust but shape={config.data.shape}"
    if "head_channels" in model.values() and model.head_channels:
        heads = f"head_channels={model.head_channels}"
    else:
        heads = f"heads={build(config).apply_fn.module.heads}"  # pyright: ignore[reportAttributeAccessIssue]
    return (
        f"imported to {workdir}; taken on trust: {heads}, time_scale={model.time_scale:g}, "
        f"schedule={diffusion.schedule}, prediction={diffusion.prediction}, "
        f"shape={config.data.shape}"
    )
