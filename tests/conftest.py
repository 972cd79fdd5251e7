"""Fixtures that several test files share."""

import atexit
import functools
import gc
import importlib.metadata
import inspect
import json
import os
import pathlib
import shutil
import sys
import tempfile

# Where Python may keep no bytecode beside its sources, every process that tests start would compile
# its libraries anew, for several seconds: it is kept for one test run.
if sys.dont_write_bytecode:
    sys.pycache_prefix = tempfile.mkdtemp(prefix="bytecode")
    pathlib.Path(sys.pycache_prefix).chmod(0o755)  # for the test of another user, too
    atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests compile more than they compute: the compiler's quick level halves their time, and so does
# LLVM alone, for one module in place of 32. Before JAX starts, hence up here. XLA ends a process
# for a flag unknown to it.
FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jax").startswith("0.10."):
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import injected, noise_by_index  # noqa: F401
from tiny import without_pictures

from diffusion_jax.core import schedules
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.types import Level, Schedule
from diffusion_jax.devices import cpu

REFERENCE = pathlib.Path(__file__).parent / "reference"


# One part in seventeen of the time went to looking for garbage, of which there is little: tracing
# makes many objects and hardly a cycle, and libraries stay.
gc.set_threshold(20_000, 10, 10)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


@pytest.fixture
def x64():
    """The test runs in double precision, so that rounding cannot hide an error of a formula."""
    with jax.enable_x64(True):
        yield


@functools.cache
def _read(name):
    path = REFERENCE / name
    return json.loads(path.read_text()) if path.suffix == ".json" else dict(np.load(path))


@pytest.fixture(scope="session")
def reference():
    """The peers' numbers: name of a file in tests/reference -> its contents."""
    return _read


@pytest.fixture(scope="session")
def parameterization_of():
    """name -> the entry of PREDICTIONS; one that needs a schedule is that of linear(100)."""

    def make(name):
        factory = PREDICTIONS[name]
        needs_schedule = "schedule" in inspect.signature(factory).parameters
        return factory(schedules.linear(100)) if needs_schedule else factory()

    return make


@pytest.fixture(scope="session")
def continuous():
    """A continuous-time schedule, alpha = cos(pi t / 2) and sigma = sin(pi t / 2), t from 0.01 to
    0.99."""

    def level(t):
        angle = jnp.pi / 2 * jnp.asarray(t)
        return Level(jnp.asarray(t), jnp.cos(angle), jnp.sin(angle))

    inverse = lambda logsnr: 2 / jnp.pi * jnp.arctan(jnp.exp(-logsnr / 2))
    return Schedule(level, inverse, t_min=0.01, t_max=0.99, num_steps=None)


@pytest.fixture
def no_pictures():
    with without_pictures():
        yield


@pytest.fixture(scope="session", autouse=True)
def untuned():
    """`cpu.tune` is for a process's start: where a test calls the program itself, its flags would
    mark this one wrongly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "tune", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests, and the processes that tests start, compile are compiled
    once."""
    base = tmp_path_factory.getbasetemp()
    base = (
        base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    )  # the same for all processes of a test run
    folder = str(base / "compilation_cache")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"  # in place of a second
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
