"""What the program sees to before a command begins: its output, its cache, its devices, its words."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator

import jax

from diffusion_jax.core import caches
from diffusion_jax.core.errors import UserError


def printable_output() -> None:
    """Characters that the terminal's encoding lacks are printed as \\uXXXX, and end no program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def keep_compiled_programs() -> None:
    """A second start compiles nothing: JAX keeps its programs in the user's cache, where
    JAX_COMPILATION_CACHE_DIR names no other folder. Without a home folder nothing is kept, and a
    note says so."""
    folder = caches.lasting()
    if folder is None:  # Matplotlib would look for one, too, and warn
        os.environ.setdefault("MPLCONFIGDIR", str(caches.cache_folder("matplotlib")))
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    if folder is None:
        note = "note: no home folder to keep a cache in, so every start compiles anew; "
        print(note + "XDG_CACHE_HOME=FOLDER names one", file=sys.stderr)
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))


@contextlib.contextmanager
def explained_devices() -> Iterator[None]:
    """Turns JAX's error about a platform that is not there into a UserError."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"[Bb]ackend '?(\w+)'?", str(error))
        if not found or not re.search("initialize backend|[Uu]nknown backend", str(error)):
            raise
        asked = os.environ.get("JAX_PLATFORMS", "")
        named = f"JAX_PLATFORMS={asked}" if asked else f"the platform {found[1]}"
        raise UserError(
            f"{named} cannot be used: JAX finds no {found[1]} device on this machine, or lacks the "
            "plugin for it (jax[cuda], jax[tpu]); JAX_PLATFORMS=cpu runs on the CPU"
        ) from error


def joined_values(argv: list[str]) -> list[str]:
    """The words of a command, with every negative number joined to the flag before it: `--flag -1`
    becomes `--flag=-1`, as -1 alone reads as a flag."""
    words: list[str] = []
    for word in argv:
        number = re.match(r"-\.?\d", word)
        if number and words and words[-1].startswith("--") and "=" not in words[-1]:
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words
