"""What the documents show is run."""

import re

import jax
import jax.numpy as jnp
import nbclient
import nbformat
import numpy as np
import pytest
from tiny import ROOT

from diffusion_jax import grids, samplers, schedules
from diffusion_jax.denoisers import with_eps

CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def test_the_readmes_example_runs_and_learns():
    (code,) = CODE.findall((ROOT / "README.md").read_text())
    namespace = {}
    exec(code, namespace)
    assert namespace["images"].shape == (16, 8, 8, 1)
    # data of mean 0.5: the network began with images of mean 0
    assert 0.25 < float(namespace["images"].mean()) < 0.75


def test_the_sampler_of_contributing_works_as_the_page_says():
    (code,) = CODE.findall((ROOT / "CONTRIBUTING.md").read_text())
    namespace = vars(samplers).copy()
    exec(code, namespace)
    euler = namespace["SAMPLERS"]["euler"]()
    # Gaussian data N(0, 0.5^2): the flow scales x_T by the ratio of the marginals' standard deviations
    schedule, std = schedules.cosine(1000), 0.5
    deviation = lambda level: jnp.sqrt(level.alpha**2 * std**2 + level.sigma**2)

    def denoiser(x, level):
        return with_eps(level.alpha * std**2 / deviation(level) ** 2 * x, x, level)

    x_init, keys = jnp.linspace(-2.0, 2.0, 5)[:, None], jax.random.split(jax.random.key(0), 5)
    # from t = 900, since the variable x / alpha is vast at the noisiest end
    errors = []
    for steps in (40, 80):
        grid = schedule.level(np.linspace(900, 0, steps).astype(int))
        x = samplers.sample(euler, denoiser, keys, x_init, grid)
        exact = x_init * std / deviation(schedule.level(900))
        errors.append(float(jnp.abs(x - exact).max()))
    assert errors[1] < 0.65 * errors[0] < 0.1
    with pytest.raises(ValueError, match="at most"):
        grids.respaced(schedule, "1001")


def test_the_notebook_runs():
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", 4)
    for cell in notebook.cells:  # the same code with fewer steps
        cell.source = cell.source.replace("range(400)", "range(3)")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "docs")}}).execute()
