"""What the program sees to before its first command: streams, precision, caches, the CPU."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator

import jax

from diffusion_jax.core import caches
from diffusion_jax.core.errors import UserError
from diffusion_jax.devices import cpu


def streams() -> None:
    """Words that the terminal's encoding lacks are escaped, not refused."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def prepare() -> None:
    """Tunes the CPU, opens the caches and takes JAX's default precision."""
    cpu.tune()
    keep_compiled_programs()
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_enable_x64", False)
        note("JAX_ENABLE_X64 is left aside: config.model.dtype names the precision")


def keep_compiled_programs() -> None:
    """A second start compiles nothing: JAX keeps its programs in the user's cache, where
    JAX_COMPILATION_CACHE_DIR names no other folder. Without a home folder nothing is kept."""
    folder = caches.lasting()
    if folder is None:  # Matplotlib would look for one, too, and warn
        os.environ.setdefault("MPLCONFIGDIR", str(caches.cache_folder("matplotlib")))
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    if folder is None:
        note("no home folder to keep compiled programs in; JAX_COMPILATION_CACHE_DIR names one")
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))


@contextlib.contextmanager
def explained_devices() -> Iterator[None]:
    """Turns JAX's error about a platform that is not there into a UserError. JAX looks for devices
    at their first use, which is another one in every command."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if has_device():
            raise
        asked = os.environ.get("JAX_PLATFORMS", "")
        cause = " ".join(str(error).split())[:200]  # none where a plugin is not installed
        raise UserError(
            "JAX finds no device"
            + (f" for JAX_PLATFORMS={asked}" if asked else "")
            + (f" ({cause})" if cause else "")
            + "; GPUs need jax[cuda] and TPUs jax[tpu], JAX_PLATFORMS=cpu computes without them"
        ) from error


def has_device() -> bool:
    try:
        return bool(jax.devices())
    except (RuntimeError, AssertionError):
        return False
