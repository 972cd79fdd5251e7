"""The design's floors, read from the imports: a module imports its own floor and those below, never
one above."""

import ast
import pathlib
import re
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "diffusion_jax"

# A new module is named here, on the floor that docs/design.md gives it.
FLOORS = {
    name: floor
    for floor, names in {
        0: "types errors version",
        1: "schedules process predictions timesteps weightings grids noise",
        2: "losses likelihood denoisers samplers ode editing mixtures",
        3: "config build sampling generate pictures plots catalog command_line weights nll figures edit training evaluation "
        "describe evaluate rate plan flops hardware cpu",
    }.items()
    for name in names.split()
} | {"": 2}  # the package itself, which gathers the core for notebooks
# Side floors: what they may import besides themselves, inside the package and outside the standard
# library. Floor 3 alone imports them. models know no diffusion, data no JAX.
SIDES = {"models": ((), {"jax", "flax", "numpy"}), "data": (("errors",), None)}
CORE_LIBRARIES = {"jax", "numpy"}
CORE_EXTRA = {"ode": {"diffrax"}}  # a core module that stands on a library of its own
JAX_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}
NO_DEVICES = ("samplers", "losses", "models")
DEVICES = re.compile(r"pmap|pmean|psum|shard|device|axis_name", re.IGNORECASE)


def _modules(package):
    """Dotted name without the package's, "" for the package itself -> path."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def _imports(name, path, modules):
    """(modules of the package, top-level names of others) that a file imports, wherever in it."""
    inner, outer = set(), set()

    def add(target, member=None):
        top, _, rest = target.partition(".")
        if top != "diffusion_jax":
            outer.add(top)
        else:
            whole = ".".join(filter(None, (rest, member)))
            inner.add(whole if whole in modules else rest)

    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = (
                ["diffusion_jax", *package][: len(package) + 2 - node.level] if node.level else []
            )
            for alias in node.names:
                add(".".join(filter(None, (*base, node.module))), alias.name)
    return inner, outer - set(sys.stdlib_module_names)


def violations(package):
    modules, found = _modules(package), []
    for name, path in modules.items():
        room = name.split(".")[0]
        if room not in FLOORS and room not in SIDES:
            found.append(
                f"{name}: on no floor; assign it one in FLOORS, test_floors.py, and in docs/design.md"
            )
            continue
        inner, outer = _imports(name, path, modules)
        for target in sorted(inner):
            other = target.split(".")[0]
            if other == room or other not in FLOORS | SIDES:
                continue
            if room in SIDES:
                allowed = other in SIDES[room][0]
            else:
                allowed = FLOORS[room] >= (3 if other in SIDES else FLOORS[other])
            if not allowed:
                found.append(f"{name}: imports diffusion_jax.{target}, which its floor must not")
        if room in SIDES:
            libraries = SIDES[room][1]
            forbidden = outer & JAX_LIBRARIES if libraries is None else outer - libraries
        else:
            forbidden = (
                outer - CORE_LIBRARIES - CORE_EXTRA.get(room, set()) if FLOORS[room] < 3 else set()
            )
        found += [
            f"{name}: imports {library}, which its floor must not" for library in sorted(forbidden)
        ]
        if (
            FLOORS.get(room) != 3
            and room in NO_DEVICES
            and (word := DEVICES.search(path.read_text()))
        ):
            found.append(
                f"{name}: mentions devices ({word[0]}), which training/parallel.py alone knows"
            )
    return found


def test_imports_only_go_down():
    assert violations(PACKAGE) == []


def test_the_whole_package_was_read():
    modules = _modules(PACKAGE)
    assert {
        "",
        "types",
        "schedules",
        "samplers.chain",
        "models.unet",
        "data.sources",
        "training.loop",
    } <= modules.keys()
    inner, outer = _imports("samplers.first_order", modules["samplers.first_order"], modules)
    assert {"process", "types", "noise"} <= inner
    assert outer == {"jax"}


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        (
            "schedules.py",
            "import diffusion_jax.samplers",
            "schedules: imports diffusion_jax.samplers",
        ),
        ("types.py", "from diffusion_jax import grids", "types: imports diffusion_jax.grids"),
        ("process.py", "from . import losses", "process: imports diffusion_jax.losses"),
        ("process.py", "from .losses import LOSSES", "process: imports diffusion_jax.losses"),
        ("grids.py", "import diffusion_jax as dj", "grids: imports diffusion_jax."),
        (
            "samplers.py",
            "def f():\n    from diffusion_jax.training import step",
            "samplers: imports diffusion_jax.training",
        ),
        (
            "losses.py",
            "from diffusion_jax.models.unet import UNet",
            "losses: imports diffusion_jax.models.unet",
        ),
        ("__init__.py", "from diffusion_jax import build", ": imports diffusion_jax.build"),
        (
            "models/unet.py",
            "from diffusion_jax.types import Level",
            "models.unet: imports diffusion_jax.types",
        ),
        (
            "models/unet.py",
            "from .. import schedules",
            "models.unet: imports diffusion_jax.schedules",
        ),
        ("models/unet.py", "import optax", "models.unet: imports optax"),
        (
            "data/sources.py",
            "from diffusion_jax.config import Config",
            "data.sources: imports diffusion_jax.config",
        ),
        ("data/sources.py", "def f():\n    import jax.numpy", "data.sources: imports jax"),
        ("denoisers.py", "import flax.linen as nn", "denoisers: imports flax"),
        ("schedules.py", "from optax import schedules", "schedules: imports optax"),
        ("samplers.py", "from jax import pmap", "samplers: mentions devices (pmap)"),
        ("models/unet.py", "x = jax.device_put", "models.unet: mentions devices (device)"),
        ("novelty.py", "", "novelty: on no floor; assign it one"),
    ],
)
def test_what_the_design_forbids_is_found(tmp_path, path, source, complaint):
    for name in (
        "__init__",
        "types",
        "schedules",
        "samplers",
        "losses",
        "grids",
        "config",
        "build",
        "models/__init__",
    ):
        (tmp_path / name).with_suffix(".py").parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".py").touch()
    for name in ("training/__init__", "training/step", "models/unet", "data/__init__"):
        (tmp_path / name).with_suffix(".py").parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".py").touch()
    assert violations(tmp_path) == []
    (tmp_path / path).write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(complaint)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "samplers.py",
            "import math\nimport jax\nfrom diffusion_jax.types import Level\nfrom diffusion_jax import denoisers",
        ),
        (
            "training/loop.py",
            "import optax, jax\nfrom diffusion_jax import models, data, samplers\nfrom ..build import f",
        ),
        (
            "data/sources.py",
            "import numpy, grain\nfrom diffusion_jax.errors import UserError\nfrom . import pipeline",
        ),
        ("models/unet.py", "import flax.linen\nfrom .attention import Attention"),
    ],
)
def test_what_the_design_allows_passes(tmp_path, path, source):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source)
    assert violations(tmp_path) == []
