"""The command `list`: what can be named in a config, and every setting with its default."""

import ast
import pathlib
import re

from diffusion_jax import samplers
from diffusion_jax.commands import edit
from diffusion_jax.core import grids, predictions, schedules, timesteps, weightings
from diffusion_jax.core.process import VARIANCES
from diffusion_jax.data import folder, images, sources
from diffusion_jax.devices import hardware
from diffusion_jax.evaluation import features
from diffusion_jax.models import unet
from diffusion_jax.objectives import losses
from diffusion_jax.runs import build
from diffusion_jax.runs.config import Config, fields

REGISTRIES = {
    "data.source": sources.SOURCES,
    "model.name": unet.MODELS,
    "diffusion.schedule": schedules.SCHEDULES,
    "diffusion.prediction": predictions.PREDICTIONS,
    "diffusion.loss": losses.LOSSES,
    "diffusion.weighting": weightings.WEIGHTINGS,
    "diffusion.timesteps": timesteps.TIMESTEPS,
    "sampling.sampler": samplers.SAMPLERS,
    "sampling.grid": grids.GRIDS,
    "editing.task": edit.TASKS,
    "evaluation.features": features.FEATURES,
}
CHOICES = {
    "data.resize": tuple(images.RESIZES),
    "data.unreadable": folder.UNREADABLE,
    "model.dtype": build.DTYPES,
    "diffusion.norm": tuple(losses.NORMS),
    "training.optimizer": build.OPTIMIZERS,
    "training.decay": build.DECAYS,
    "diffusion.variance": ("fixed_small", "fixed_large"),
    "sampling.variance": ("model", *VARIANCES),
    "editing.mask": tuple(edit.MASKS),
}


def summary(docstring: str | None) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    return re.split(r"(?<! al)(?<! alg)(?<! eq)(?<! eqs)(?<!\.\.)\. ", paragraph)[0].rstrip(".")


def catalog(folder: pathlib.Path) -> str:
    """The page that `list` prints; folder holds the experiments."""
    lines = ["Experiments (--config):"]
    for path in sorted(folder.glob("*.py")):
        lines.append(
            f"  {folder.name}/{path.name:<24} {summary(ast.get_docstring(ast.parse(path.read_text())))}"
        )
    for field, registry in REGISTRIES.items():
        lines += ["", f"--config.{field}"]
        lines += [f"  {name:<16} {summary(entry.__doc__)}" for name, entry in registry.items()]
    lines += [""] + [f"--config.{field:<24} {', '.join(names)}" for field, names in CHOICES.items()]
    lines += [f"--device (of plan){'':<14} {', '.join(hardware.DEVICES)}"]
    lines += ["", "Settings, with their defaults where no experiment says otherwise:"]
    lines += [
        f"  --config.{path + '=' + _text(value):<46} {f.metadata['doc']}"
        for path, f, value in fields(Config())
    ]
    return "\n".join(lines)


def _text(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
