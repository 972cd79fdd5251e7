"""Writes a run's weights under the names of Improved DDPM and ADM, as .safetensors.

python main.py export-weights --workdir DIR --weights FILE
"""

import pathlib

from diffusion_jax.core.errors import UserError
from diffusion_jax.interop.files import check_writable, write_safetensors
from diffusion_jax.interop.state_dicts import to_torch_names
from diffusion_jax.models.unet import UNet
from diffusion_jax.runs.build import build
from diffusion_jax.runs.command_line import Flag, Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import check_same, restore_params
from diffusion_jax.runs.settings import load

FLAGS = {
    "weights": Flag("", "the file to write, .safetensors", "the file of the weights"),
    "new_attention_order": Flag(False, "q, k and v outermost in its attention"),
}


def run(given: Given) -> str:
    """What `main.py export-weights` does with its flags."""
    file, order = given.flags["weights"], given.flags["new_attention_order"]
    return f"weights: {export_weights(given.workdir, file, given.config, order)}"


def export_weights(
    workdir: pathlib.Path,
    path: str | pathlib.Path,
    config: Config | None = None,
    new_attention_order: bool = False,
) -> pathlib.Path:
    """Writes the newest checkpoint's parameters as .safetensors under the original's names; returns
    the file.

    config: the run's, with sampling.ema choosing between the averaged parameters and the raw ones;
    None reads the stored one. Raises UserError where the file exists or cannot be written.
    """
    workdir, path = pathlib.Path(workdir), pathlib.Path(path)
    config = config or load(workdir / "config.json")
    check_same(config, workdir, "exporting takes only config.sampling.* settings")
    check_writable(path)
    parts = build(config)
    unet = parts.apply_fn.module
    if not isinstance(unet, UNet):
        raise UserError(f"only a U-Net has names there, and this run is a {config.model.entry}")
    params, _ = restore_params(config, parts, workdir, config.sampling.ema)
    write_safetensors(path, to_torch_names(params, unet, new_attention_order))
    return path
