"""The design's floors, read from the imports: a folder imports itself and those below, never one
above."""

import ast
import pathlib
import re
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "diffusion_jax"

# From the ground up. A new folder is named here, where docs/design.md has it.
FLOORS = [
    "core",
    "data",
    "denoisers",
    "likelihood",
    "samplers",
    "modalities",
    "codecs",
    "conditioning",
    "objectives",
    "models",
    "devices",
    "interop",
    "evaluation",
    "training",
    "runs",
    "commands",
]
LIBRARY = FLOORS[: FLOORS.index("devices")]  # what notebooks use; knows no optimizer and no device
FREE_OF = {  # floor -> libraries that it must do without
    **{floor: {"optax", "orbax", "flax"} for floor in LIBRARY},
    "models": {"optax", "orbax"},
    "data": {"jax", "jaxlib", "flax", "optax", "orbax"},
}
DEVICES = re.compile(r"pmap|pmean|psum|shard|device|axis_name", re.IGNORECASE)
NO_DEVICES = ("denoisers", "samplers", "conditioning", "codecs", "objectives", "models")
TO_THE_GRADIENT = ("main.py", "diffusion_jax/commands/train.py", "diffusion_jax/training/step.py")


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
            up = len(package) + 2 - node.level
            base = ["diffusion_jax", *package][:up] if node.level else []
            for alias in node.names:
                add(".".join(filter(None, (*base, node.module))), alias.name)
    return inner, outer - set(sys.stdlib_module_names)


def violations(package):
    modules, found = _modules(package), []
    for name, path in modules.items():
        room = name.split(".")[0]
        if room and room not in FLOORS:
            found.append(f"{name}: on no floor; give it one in FLOORS and in docs/design.md")
            continue
        height = FLOORS.index(room) if room else FLOORS.index("objectives")
        inner, outer = _imports(name, path, modules)
        for target in sorted(inner):
            other = target.split(".")[0]
            above = not other or FLOORS.index(other) > height if other in FLOORS or not other else 0
            a_command = other == "commands" and target not in (name, "commands")
            if above or a_command:
                found.append(f"{name}: imports diffusion_jax.{target}, which it must not")
        for library in sorted(outer & FREE_OF.get(room, set())):
            found.append(f"{name}: imports {library}, which its floor must not")
        if room in NO_DEVICES and (word := DEVICES.search(path.read_text())):
            found.append(f"{name}: mentions devices ({word[0]}), which devices/ alone knows")
    return found


def test_imports_only_go_down_and_nothing_imports_a_command():
    assert violations(PACKAGE) == []


def test_the_top_holds_folders_and_one_file():
    assert [path.name for path in PACKAGE.glob("*.*")] == ["__init__.py"]
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(FLOORS)


def test_files_are_neither_long_nor_main_a_program():
    lengths = {name: len(path.read_text().splitlines()) for name, path in _modules(PACKAGE).items()}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
    assert len((PACKAGE.parent / "main.py").read_text().splitlines()) < 80


def test_three_files_lead_from_main_to_the_gradient():
    main, loop, step = ((PACKAGE.parent / name).read_text() for name in TO_THE_GRADIENT)
    assert "command.run(" in main
    assert "def run(given" in loop
    assert "make_train_step(" in loop
    assert "jax.value_and_grad(" in step


def test_tests_mirror_the_package():
    here = pathlib.Path(__file__).parent
    folders = {path.name for path in here.iterdir() if any(path.glob("test_*.py"))}
    assert folders == set(FLOORS)


def test_the_whole_package_was_read():
    modules = _modules(PACKAGE)
    assert {"", "core.types", "samplers.chain", "models.unet", "commands.train"} <= modules.keys()
    inner, outer = _imports("samplers.first_order", modules["samplers.first_order"], modules)
    assert {"core.process", "core.types"} <= inner
    assert outer == {"jax"}


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("core/grids.py", "import diffusion_jax.samplers", "core.grids: imports diffusion_jax.sam"),
        ("core/grids.py", "from .. import samplers", "core.grids: imports diffusion_jax.samplers"),
        ("core/grids.py", "from ..objectives.losses import f", "core.grids: imports diffusion_jax"),
        ("core/grids.py", "import diffusion_jax as dj", "core.grids: imports diffusion_jax."),
        ("core/grids.py", "import flax.linen as nn", "core.grids: imports flax"),
        ("samplers/chain.py", "def f():\n    from diffusion_jax.training import step", "samplers"),
        ("samplers/chain.py", "from jax import pmap", "samplers.chain: mentions devices (pmap)"),
        ("__init__.py", "from diffusion_jax.runs import build", ": imports diffusion_jax.runs"),
        ("models/unet.py", "import optax", "models.unet: imports optax"),
        ("models/unet.py", "x = jax.device_put", "models.unet: mentions devices (device)"),
        ("data/sources.py", "def f():\n    import jax.numpy", "data.sources: imports jax"),
        ("training/step.py", "from ..runs import build", "training.step: imports diffusion_jax.ru"),
        ("commands/train.py", "from . import sample", "commands.train: imports diffusion_jax.comm"),
        ("novelty/a.py", "", "novelty.a: on no floor; give it one"),
    ],
)
def test_what_the_design_forbids_is_found(tmp_path, path, source, complaint):
    for name in ("__init__", "core/grids", "samplers/chain", "samplers/__init__", "models/unet"):
        (tmp_path / name).with_suffix(".py").parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".py").touch()
    for name in ("training/step", "runs/build", "objectives/losses", "data/sources"):
        (tmp_path / name).with_suffix(".py").parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".py").touch()
    for name in ("commands/train", "commands/sample"):
        (tmp_path / name).with_suffix(".py").parent.mkdir(exist_ok=True)
        (tmp_path / name).with_suffix(".py").touch()
    assert violations(tmp_path) == []
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(complaint)
