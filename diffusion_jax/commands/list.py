"""Prints what can be named: the experiments, every entry with its arguments, every setting.

python main.py list
"""

import ast
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from diffusion_jax.devices import hardware
from diffusion_jax.evaluation import features
from diffusion_jax.runs import editing
from diffusion_jax.runs.citations import papers
from diffusion_jax.runs.command_line import Given, Needs
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.registries import REGISTRIES
from diffusion_jax.runs.registry import RUN_GIVES, Registry, settings
from diffusion_jax.runs.settings import leaves
from diffusion_jax.runs.values import Setting, named
from diffusion_jax.samplers import names

NEEDS = Needs(nothing=True)
EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
WIDTH = 100


def run(given: Given) -> str:
    """What `main.py list` prints."""
    return catalog(EXPERIMENTS)


def summary(docstring: str | None) -> str:
    """The first sentence of a docstring."""
    paragraph = " ".join((docstring or "").split("\n\n")[0].split())
    return re.split(r"(?<! al)(?<! alg)(?<! eq)(?<! eqs)(?<!\.\.)\. ", paragraph)[0].rstrip(".")


def catalog(folder: pathlib.Path) -> str:
    """The page that `list` prints; folder holds the experiments."""
    lines = ["Experiments (--config):"]
    for path in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        lines.append(f"  {folder.name}/{path.name:<24} {summary(docstring)}")
    for registry in REGISTRIES.values():
        lines += ["", f"--config.{registry.path}", *of_registry(registry)]
    own = {"evaluation.features": features.FEATURES, "editing.task": editing.TASKS}
    for path, entries in own.items():
        lines += ["", f"--config.{path}"]
        lines += [f"  {name:<18} {summary(entry.__doc__)}" for name, entry in entries.items()]
    lines += ["", f"--config.editing.mask: {', '.join(editing.MASKS)}, or a .png"]
    lines += [f"--device (of plan): {', '.join(hardware.DEVICES)}"]
    lines += ["", *of_others()]
    lines += ["", "Settings, with their defaults where no experiment says otherwise:"]
    default = Config()
    for leaf in leaves(default):
        if leaf.path.count(".") < 2 and not leaf.argument:
            words = choices(leaf.setting)
            text = f"--config.{leaf.path}={shown(leaf.value)}"
            lines.append(f"  {text:<46} {leaf.setting.doc}{words}")
    return "\n".join(lines)


def of_registry(registry: Registry) -> Iterator[str]:
    """An entry with its first sentence and its papers, and each of its arguments, beneath it."""
    for name in registry.names():
        factory = registry.factory(name)
        text = summary(factory.__doc__) if factory else "none"
        if (found := papers(factory)) and not any(paper in text for paper in found):
            text += f" ({'; '.join(found)})"
        yield f"  {name:<18} {text}"
        for setting in settings(registry, name).values():
            default = RUN_GIVES if setting.own else shown(setting.default)
            text = f".{setting.name}={default}"
            yield f"      {text:<32} {setting.doc}{choices(setting)}"


def of_others() -> Iterator[str]:
    """The names of other programs that config.sampling.sampler takes."""
    yield "--config.sampling.sampler, the names of k-diffusion; of diffusers; of web interfaces:"
    for ours, *others in names.rows():
        yield f"  {ours:<26} {'; '.join(filter(None, others))}"
    grids = ", ".join(sorted(names.GRIDS))
    yield f'  and a grid behind, as in "DPM++ 2M Karras": {grids}'


def choices(setting: Setting) -> str:
    """The words that a setting takes, where it takes but a few."""
    few = isinstance(setting.kind, tuple) and isinstance(setting.kind[0], str)
    return f" ({named(setting.kind)})" if few else ""


def shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
