"""The command `import`: a run made of a file of others' weights."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.interop.files import read_checkpoint
from diffusion_jax.interop.state_dicts import from_torch_names, infer_model
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config, load, to_json
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.state import init_state


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
    prediction; with training.label_dropout above 0 the last label means "none". The parameters and
    their average are the file's, the optimizer is new. Raises UserError, and writes nothing, where
    they do not fit."""
    workdir = pathlib.Path(workdir)
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds a run already; choose another --workdir")
    if workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty; choose another --workdir")
    if len(config.data.shape) != 3:
        raise UserError(
            f"config.data.shape must be height, width and channels, not {config.data.shape}"
        )
    tensors = read_checkpoint(path)
    settings, channels, num_classes = infer_model(tensors, config.data.shape[0])
    num_classes -= num_classes > 0 and config.training.label_dropout > 0
    data = dataclasses.replace(
        config.data, shape=(*config.data.shape[:2], channels), num_classes=num_classes
    )
    model = dataclasses.replace(config.model, name="unet", **settings)
    config = dataclasses.replace(config, model=model, data=data)
    parts = build(config)
    like = jax.eval_shape(parts.init_params, jax.random.key(0))
    params = jax.tree.map(jnp.asarray, from_torch_names(tensors, like, model, new_attention_order))

    make_folder(workdir)
    checkpoints = Checkpoints(workdir, config.training.keep_checkpoints)
    _, key = jax.random.split(jax.random.key(config.seed))  # as a new run's, in training/loop.py
    state = init_state(params, parts.optimizer, parts.timesteps.init())
    checkpoints.save(state, {"key": jax.random.key_data(key).tolist()}, wait=True)
    checkpoints.close()
    write_text(
        workdir / "config.json", to_json(config)
    )  # last: a folder with a config has its weights
    return config


def on_trust(workdir: pathlib.Path) -> str:
    """What no check of an imported run can tell: a wrong number of heads gives noise, not an
    error."""
    config = load(workdir / "config.json")
    model, diffusion = config.model, config.diffusion
    heads = (
        f"head_channels={model.head_channels}" if model.head_channels else f"heads={model.heads}"
    )
    taken = (
        f"{heads}, time_scale={model.time_scale:g}, schedule={diffusion.schedule}, "
        f"num_steps={diffusion.num_steps}, prediction={diffusion.prediction}, "
        f"shape={config.data.shape}"
    )
    return f"imported to {workdir}; taken on trust: {taken}"
