"""Where the program keeps what it can make again: compiled programs, decoded images, features."""

import atexit
import functools
import os
import pathlib
import shutil
import tempfile


def lasting() -> pathlib.Path | None:
    """$XDG_CACHE_HOME or ~/.cache, in diffusion_jax; None for a user without a home folder, or with
    one in which it cannot be made."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return pathlib.Path(named) / "diffusion_jax"
    try:
        folder = pathlib.Path.home() / ".cache" / "diffusion_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):
        return None
    return folder


@functools.cache
def temporary() -> pathlib.Path:
    """A folder of this process alone, which goes with it."""
    folder = tempfile.mkdtemp(prefix="diffusion_jax-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


def cache_folder(*names: str) -> pathlib.Path:
    """The folder of these names in the lasting cache, else in the temporary one; it need not exist
    yet."""
    return (lasting() or temporary()).joinpath(*names)
