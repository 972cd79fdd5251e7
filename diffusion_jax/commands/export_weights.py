"""Writes a run's weights as .safetensors, under the names of the published ones.

python main.py export-weights --workdir DIR --weights FILE [--layout diffusers]
"""

import pathlib
from typing import Any

from diffusion_jax.core.errors import UserError
from diffusion_jax.interop import autoencoder_names, dit_names, tiny_names
from diffusion_jax.interop.files import Tensors, check_writable, write_safetensors
from diffusion_jax.interop.state_dicts import to_torch_names
from diffusion_jax.models.autoencoder import Autoencoder
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.tiny_autoencoder import TinyAutoencoder
from diffusion_jax.models.unet import UNet
from diffusion_jax.runs.build import build
from diffusion_jax.runs.command_line import Flag, Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.open import check_same, restore_params
from diffusion_jax.runs.settings import load

FLAGS = {
    "weights": Flag("", "the file to write, .safetensors", "the file of the weights"),
    "new_attention_order": Flag(False, "q, k and v outermost in a U-Net's attention"),
    "layout": Flag(
        "", "of the names: dit, compvis or taesd, the network's own, or diffusers; empty: its own"
    ),
}

# of each network's names, its own first
LAYOUTS = {
    UNet: ("",),
    DiT: ("dit", "diffusers"),
    Autoencoder: ("compvis", "diffusers"),
    TinyAutoencoder: ("taesd", "diffusers"),
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
    layout: str = "",
) -> pathlib.Path:
    """Writes the newest checkpoint's parameters as .safetensors under the original's names; returns
    the file.

    config: the run's, with sampling.ema choosing between the averaged parameters and the raw ones;
    None reads the stored one. layout: of the names, "diffusers" or the network's own, "dit",
    "compvis" or, in two files, "taesd", which is meant where it is empty. Raises UserError
    where the file exists or cannot be written.
    """
    workdir, path = pathlib.Path(workdir), pathlib.Path(path)
    config = config or load(workdir / "config.json")
    check_same(config, workdir, "exporting takes only config.sampling.* settings")
    check_writable(path)
    parts = build(config)
    network = parts.apply_fn.module
    known = next((own for kind, own in LAYOUTS.items() if isinstance(network, kind)), None)
    if known is None:
        raise UserError(
            "only a U-Net, a DiT and an autoencoder have names there, and this run is a "
            f"{config.model.entry}"
        )
    names: Any = layout or known[0]
    if names not in known:
        raise UserError(f"--layout is one of {', '.join(filter(None, known))}, not {layout!r}")
    params, _ = restore_params(config, parts, workdir, config.sampling.ema)
    if isinstance(network, DiT):
        tensors = dit_names.to_names(params, network, *parts.codec.shape[:2], layout=names)
    elif isinstance(network, Autoencoder):
        tensors = autoencoder_names.to_names(params, network, names)
    elif isinstance(network, TinyAutoencoder):
        tensors = tiny_names.to_names(params, network, names)
    else:
        assert isinstance(network, UNet)
        tensors = to_torch_names(params, network, new_attention_order)
    for one, own in files_of(path, tensors, names).items():
        check_writable(one)
        write_safetensors(one, own)
    return path


def files_of(path: pathlib.Path, tensors: Tensors, layout: str) -> dict[pathlib.Path, Tensors]:
    """file -> its tensors: of TAESD's own layout NAME_encoder.safetensors and
    NAME_decoder.safetensors."""
    if layout != "taesd":
        return {path: tensors}
    found = {}
    for half in ("encoder", "decoder"):
        own = {n.removeprefix(f"{half}."): a for n, a in tensors.items() if n.startswith(half)}
        found[path.with_name(f"{path.stem}_{half}{path.suffix}")] = own
    return found
