"""Writes a run's weights under the names of Improved DDPM, ADM or DiT, as .safetensors.

python main.py export-weights --workdir DIR --weights FILE [--layout diffusers]
"""

import pathlib
from typing import cast

from diffusion_jax.core.errors import UserError
from diffusion_jax.interop.dit_names import LAYOUTS, Layout, to_names
from diffusion_jax.interop.files import check_writable, write_safetensors
from diffusion_jax.interop.state_dicts import to_torch_names
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.unet import UNet
from diffusion_jax.runs.build import build
from diffusion_jax.runs.command_line import Flag, Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import check_same, restore_params
from diffusion_jax.runs.settings import load

FLAGS = {
    "weights": Flag("", "the file to write, .safetensors", "the file of the weights"),
    "new_attention_order": Flag(False, "q, k and v outermost in a U-Net's attention"),
    "layout": Flag("dit", "of a DiT's names: dit, the paper's, or diffusers"),
}


def run(given: Given) -> str:
    """What `main.py export-weights` does with its flags."""
    flags = given.flags
    order, layout = flags["new_attention_order"], flags["layout"]
    path = export_weights(given.workdir, flags["weights"], given.config, order, layout)
    return f"weights: {path}"


def export_weights(
    workdir: pathlib.Path,
    path: str | pathlib.Path,
    config: Config | None = None,
    new_attention_order: bool = False,
    layout: str = "dit",
) -> pathlib.Path:
    """Writes the newest checkpoint's parameters as .safetensors under the original's names; returns
    the file.

    config: the run's, with sampling.ema choosing between the averaged parameters and the raw ones;
    None reads the stored one. layout: of a DiT's names, "dit" or "diffusers". Raises UserError
    where the file exists or cannot be written.
    """
    workdir, path = pathlib.Path(workdir), pathlib.Path(path)
    config = config or load(workdir / "config.json")
    check_same(config, workdir, "exporting takes only config.sampling.* settings")
    check_writable(path)
    parts = build(config)
    network = parts.apply_fn.module
    if not isinstance(network, UNet | DiT):
        raise UserError(
            f"only a U-Net and a DiT have names there, and this run is a {config.model.entry}"
        )
    if layout not in LAYOUTS:
        raise UserError(f"--layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    params, _ = restore_params(config, parts, workdir, config.sampling.ema)
    if isinstance(network, DiT):
        tensors = to_names(params, network, *parts.codec.shape[:2], layout=cast(Layout, layout))
    else:
        tensors = to_torch_names(params, network, new_attention_order)
    write_safetensors(path, tensors)
    return path
