"""CONTRIBUTING.md, followed: its code in new files of a copy, its lines in the registries."""

import ast
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

from tiny import ROOT

SECTION = re.compile(r"^## Add an? (\w+)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
FIRST = re.compile(r'`(\S+\.py)`, and `"(\w+)": (\w+)` in `(\w+)` of\s+`(\S+\.py)`:')
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


class Addition(NamedTuple):
    """What a section of the page adds, and the command that uses it."""

    file: str
    code: str
    name: str
    factory: str
    entries: str  # the dict's name
    registry: str  # its file
    command: list[str]  # without `python`


def additions() -> dict[str, Addition]:
    """By the noun of their heading."""
    found = {}
    for noun, text in SECTION.findall((ROOT / "CONTRIBUTING.md").read_text()):
        file, name, factory, entries, registry = FIRST.search(text).groups()
        (code,) = CODE.findall(text)
        command = re.search(r"^    python (main\.py.*?[^\\])$", text, re.DOTALL | re.MULTILINE)[1]
        words = shlex.split(command.replace("\\\n", " "))
        found[noun] = Addition(file, code, name, factory, entries, registry, words)
    return found


def copied(folder: pathlib.Path) -> pathlib.Path:
    """A copy of the program and its tests, without their recorded arrays."""
    copy, left_out = folder / "copy", shutil.ignore_patterns("*.npz", "__pycache__")
    for name in ("diffusion_jax", "experiments", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    for name in ("main.py", "pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, copy)
    return copy


def add(copy: pathlib.Path, addition: Addition) -> None:
    """One new file, its import, and one entry of a dict."""
    file, registry = copy / addition.file, copy / addition.registry
    assert not file.exists()
    file.write_text(addition.code)
    module = addition.file.removesuffix(".py").replace("/", ".")
    lines = registry.read_text().splitlines()
    body = ast.parse("\n".join(lines)).body
    (entries,) = (
        node.value
        for node in body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == addition.entries
    )
    row, column = entries.end_lineno - 1, entries.end_col_offset - 1
    before, after = lines[row][:column], lines[row][column:]
    comma = "" if (before.strip() or lines[row - 1]).endswith(",") else ", "
    lines[row] = f'{before}{comma}"{addition.name}": {addition.factory}{after}'
    last = max(node.end_lineno for node in body if isinstance(node, ast.ImportFrom))
    lines.insert(last, f"from {module} import {addition.factory}")
    registry.write_text("\n".join(lines) + "\n")


def python(copy: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=copy, capture_output=True, text=True, timeout=600
    )


SEVERAL = """
import contextlib, io, json, runpy, sys
from diffusion_jax.runs import plots
plots.losses = lambda *arguments: None  # of every run alike, and slow
results = []
for sys.argv in json.loads(sys.argv[1]):
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
    results.append((status, out.getvalue(), err.getvalue()))
print("\\nresults:", json.dumps(results))
"""


def several(copy: pathlib.Path, *commands: list[str]) -> list[subprocess.CompletedProcess]:
    """What commands, each without `python`, did one after the other in one process, which starts
    and compiles once."""
    done = python(copy, "-c", SEVERAL, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.rpartition("\nresults: ")[2])
    pairs = zip(commands, results, strict=True)
    return [subprocess.CompletedProcess(command, *result) for command, result in pairs]
