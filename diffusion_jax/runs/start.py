"""What the program sees to before its first command: streams, precision, caches, the CPU."""

import contextlib
import io
import os
import re
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
    except RuntimeError as error:
        found = re.search(r"[Bb]ackend '?(\w+)'?", str(error))
        if not found or not re.search("initialize backend|[Uu]nknown backend", str(error)):
            raise
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX finds no {found[1]} device on this machine, or lacks "
            f"what it needs for one (jax[cuda], jax[tpu]); unset it, or set JAX_PLATFORMS=cpu"
        ) from error
