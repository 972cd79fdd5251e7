"""Which paper a method is from, as its docstring says."""

import re
import sys
from collections.abc import Callable

from diffusion_jax.runs.config import Config
from diffusion_jax.runs.registries import REGISTRIES
from diffusion_jax.runs.settings import leaves

NAME = r"[A-Z][\w'\u2019-]+"
PAPER = re.compile(rf"(?!In )\b{NAME}(?:,? (?:&|and) {NAME}| et al\.)?,? (?:19|20)\d\d[a-z]?\b")


def papers(factory: Callable | None) -> list[str]:
    """Authors and years that a factory's docstring names or, where it names none, its module's."""
    if factory is None:
        return []
    for text in (factory.__doc__, sys.modules[factory.__module__].__doc__):
        paragraphs = " ".join((text or "").split())
        if found := list(dict.fromkeys(PAPER.findall(paragraphs))):
            return found
    return []


def citations(config: Config) -> dict[str, list[str]]:
    """The papers of the methods that a config names: "sampling.sampler=ddim" -> authors, years."""
    found = {}
    for leaf in leaves(config):
        registry = REGISTRIES.get(leaf.path)
        if registry is None or leaf.argument:
            continue
        for name in leaf.value if isinstance(leaf.value, tuple) else (leaf.value,):
            if of := papers(registry.factory(name)):
                found[f"{leaf.path}={name}"] = of
    return found
