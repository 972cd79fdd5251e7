"""Experiment files: what the `get_config()` of a Python file returns."""

import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import pathlib
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any

from diffusion_jax.core.errors import UserError


def read(path: str | pathlib.Path) -> Any:
    """The result of the file's `get_config()`.

    While it runs the file can import its neighbours, as `import digits` and, by the name of their
    folder, as `from experiments import digits`. Every call reads these anew. Raises UserError,
    one line with the file and the cause, for whatever fails in it."""
    path = pathlib.Path(path).resolve()
    try:
        with importing_from(path.parent):
            module = execute(path)
            if not callable(getattr(module, "get_config", None)):
                raise UserError(f"{path} has no function get_config()")
            return module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be loaded: {cause(error, path)}") from error


def execute(path: pathlib.Path) -> types.ModuleType:
    """The file's module. Its name is made of the whole path, so that no two files share one; it
    stays in `sys.modules`, where `dataclasses` and `typing` look annotations up."""
    name = f"experiment_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader, origin=str(path))
    assert spec
    module = importlib.util.module_from_spec(spec)
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)  # bytes: any encoding
    sys.modules[name] = module
    try:
        exec(code, vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def importing_from(folder: pathlib.Path) -> Iterator[None]:
    """Within it, modules in the folder can be imported, by their own name and behind the folder's;
    afterwards they are forgotten, as another folder may have modules of the same names."""
    path, package = list(sys.path), folder.name
    loaded = set(sys.modules)
    hidden = {name: sys.modules[name] for name in loaded if in_namespace(name, package)}
    for name in hidden:
        del sys.modules[name]
    sys.path[:0] = [str(folder), str(folder.parent)]
    importlib.invalidate_caches()  # a neighbour may be younger than the last look at the folder
    try:
        yield
    finally:
        sys.path[:] = path
        new = [name for name in sys.modules if name not in loaded or name in hidden]
        neighbours = [n for n in new if in_namespace(n, package) or lies_in(n, folder, loaded)]
        for name in neighbours:
            del sys.modules[name]
        sys.modules.update(hidden)


def in_namespace(name: str, package: str) -> bool:
    """Whether a module is the namespace package of that name or one of its modules."""
    top = name.partition(".")[0]
    module = sys.modules.get(top)
    return top == package and module is not None and getattr(module, "__file__", None) is None


def lies_in(name: str, folder: pathlib.Path, loaded: set[str]) -> bool:
    """Whether a module, or the package that it is part of, is new and a neighbour of the file."""
    top = name.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    if top in loaded or not file:
        return False
    return pathlib.Path(file).resolve() in (folder / f"{top}.py", folder / top / "__init__.py")


def cause(error: BaseException, path: pathlib.Path) -> str:
    """The error and the line of the file that led to it, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{text} (line {lines[-1]})" if lines and not isinstance(error, SyntaxError) else text
