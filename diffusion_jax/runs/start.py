"""What the program sets before the first command: streams, the compilation cache, the CPU."""

import os
import sys

import jax

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import cache
from diffusion_jax.devices import cpu


def streams() -> None:
    """Words that the terminal's encoding lacks are escaped, not refused."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def prepare() -> None:
    """Tunes the CPU and opens the compilation cache, with which a second start compiles nothing."""
    cpu.tune()
    if not jax.config.values["jax_compilation_cache_dir"]:
        folder = cache()
        if folder is None:
            print("note: there is no home folder, so nothing compiled is kept; "
                  "JAX_COMPILATION_CACHE_DIR names one", file=sys.stderr)  # fmt: skip
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))


def device() -> None:
    """Makes sure that there is a device to compute on; UserError where there is none."""
    try:
        jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        cause = " ".join(str(error).split())[:160]
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={asked!r} ({cause}); unset it, or set cpu"
        ) from None
