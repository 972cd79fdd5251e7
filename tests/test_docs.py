"""What the documents show is run."""

import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import nbclient
import nbformat
from tiny import ROOT

import diffusion_jax as dj

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_readmes_example_runs_and_learns():
    (code,) = CODE.findall((ROOT / "README.md").read_text())
    namespace = {}
    exec(code, namespace)
    assert namespace["images"].shape == (16, 8, 8, 1)
    # data of mean 0.5: the network began with images of mean 0
    assert 0.25 < float(namespace["images"].mean()) < 0.75


def test_adding_the_sampler_of_contributing_touches_one_file_and_is_held_to_its_order(tmp_path):
    """The page followed: its code into a copy's multistep.py, then the command, the list and the
    laws over SAMPLERS."""
    shutil.copytree(
        ROOT,
        tmp_path / "copy",
        ignore=shutil.ignore_patterns(".*", "runs", "docs", "*.npz", "__pycache__"),
    )
    file = tmp_path / "copy" / "diffusion_jax" / "samplers" / "multistep.py"
    (code,) = CODE.findall((ROOT / "CONTRIBUTING.md").read_text())
    file.write_text(f"{file.read_text()}\n\n{code}")
    python = lambda *arguments: subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path / "copy",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Adams-Bashforth" in python("main.py", "list").stdout
    laws = (
        "tests/test_samplers.py",
        "-k",
        "adams_bashforth or docstring",
        "-p",
        "no:cacheprovider",
        "-n0",
    )
    passed = python("-m", "pytest", *laws)
    assert passed.returncode == 0, passed.stdout
    # and its order is measured, not believed
    file.write_text(file.read_text().replace("length / (2.0 * length_before)", "0.0"))
    failed = python("-m", "pytest", *laws)
    assert failed.returncode == 1
    assert "follow_the_flow_at_their_order_on_every_schedule[adams_bashforth]" in failed.stdout


def test_the_samplers_page_runs():
    (code,) = CODE.findall((ROOT / "docs" / "samplers.md").read_text())
    shown, keys = [], jax.random.split(jax.random.key(0), 2)
    namespace = {
        "dj": dj,
        "schedule": dj.schedules.cosine(50),
        "prediction": dj.predictions.v(),
        "params": 0.5,
        "w": 1.0,
    }
    namespace |= {
        "apply_fn": lambda params, x, t, cond: params * x + 0.1 * cond[:, None],
        "show": shown.append,
        "keys": keys,
    }
    namespace |= {
        "labels": jnp.array([0, 1]),
        "no_labels": jnp.array([2, 2]),
        "x_init": jax.random.normal(keys[0], (2, 3)),
    }
    exec(code, namespace)
    assert len(shown) == 5
    assert namespace["noise"].shape == (2, 3)


def test_the_samplers_page_names_every_sampler_and_grid():
    page = (ROOT / "docs" / "samplers.md").read_text()
    for name in (*dj.samplers.SAMPLERS, *dj.grids.GRIDS):
        assert f"`{name}`" in page, name


def test_the_notebook_runs():
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", 4)
    for cell in notebook.cells:  # the same code with fewer steps
        cell.source = cell.source.replace("range(400)", "range(3)")
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}
    ).execute()
