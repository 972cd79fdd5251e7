"""The command `export`: a run's weights as a file under the names of Improved DDPM and ADM."""

import pathlib

from diffusion_jax.commands.sample import restore_params
from diffusion_jax.core.errors import UserError
from diffusion_jax.interop.files import check_writable, write_safetensors
from diffusion_jax.interop.state_dicts import to_torch_names
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config, differences, load


def export_weights(
    workdir: pathlib.Path,
    path: str | pathlib.Path,
    config: Config | None = None,
    new_attention_order: bool = False,
) -> pathlib.Path:
    """Writes the newest checkpoint's parameters as .safetensors under the original's names; returns
    the file.

    config: the run's, with sampling.ema choosing between the averaged parameters and the raw ones;
    None reads the stored one. Raises UserError where the file exists or cannot be written."""
    workdir, path = pathlib.Path(workdir), pathlib.Path(path)
    stored = load(workdir / "config.json")
    config = config or stored
    changed = differences(stored, config)
    if changed:
        raise UserError(
            f"exporting takes only config.sampling.* settings, not {'; '.join(changed)}"
        )
    check_writable(path)
    params, _ = restore_params(config, build(config), workdir, config.sampling.ema)
    write_safetensors(path, to_torch_names(params, config.model, new_attention_order))
    return path
