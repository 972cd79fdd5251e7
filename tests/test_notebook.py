"""The first cell of the notebook finds the package from wherever it runs."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A Python that knows no diffusion_jax, whose pip says what it would install.
ALONE = """
import subprocess, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [path for path in sys.path if path and "diffusion_jax" not in path and path != {root!r}]
sys.path.insert(0, "")  # a kernel's working directory
subprocess.run = lambda words, check: print("installs", words[-1])
"""


def first_cell() -> str:
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))


def run_in(folder: pathlib.Path) -> subprocess.CompletedProcess:
    code = ALONE.format(root=str(ROOT)) + first_cell() + "\nprint('found', dj.where)"
    python = [sys.executable, "-c", code]
    return subprocess.run(python, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path):
    """A clone, named as the package is, in a folder; and nothing else."""
    clone = tmp_path / "work" / "diffusion_jax"
    (clone / "diffusion_jax").mkdir(parents=True)
    (clone / "docs" / "deep").mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    (clone / "diffusion_jax" / "__init__.py").write_text("where = __file__")
    return clone


@pytest.mark.parametrize("place", ["docs", "docs/deep", ".."])
def test_the_notebook_installs_the_checkout_from_wherever_it_runs(checkout, place):
    """Above the working directory, or cloned into it: then the clone's folder is no package."""
    done = run_in(checkout / place)
    package = checkout / "diffusion_jax" / "__init__.py"
    assert done.stdout == f"installs {checkout}\nfound {package}\n", done.stderr


def test_the_notebook_installs_nothing_where_the_package_is_there(checkout):
    done = run_in(checkout)  # Python looks in the working directory
    assert done.stdout.startswith("found "), done.stderr


def test_the_notebook_says_in_one_line_that_there_is_no_checkout(tmp_path):
    done = run_in(tmp_path)
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"There is no checkout of diffusion_jax in or above {tmp_path}: run")
