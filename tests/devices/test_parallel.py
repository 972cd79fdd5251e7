"""The same numbers on one device, eight of one process, and several processes."""

import gc
import subprocess
import sys

import jax
import jax.numpy as jnp
import layouts_program
import numpy as np
import pytest
import tiny
from several import OUTPUT, devices, processes
from tiny import ROOT, experiment_file

from diffusion_jax.commands.plan import held
from diffusion_jax.core.errors import UserError
from diffusion_jax.devices import parallel
from diffusion_jax.models.unet import UNet
from diffusion_jax.runs.build import build
from diffusion_jax.runs.network import beginning

TESTS = ROOT / "tests"


def test_eight_devices_give_the_numbers_of_one():
    program = [sys.executable, str(TESTS / "devices_program.py"), str(ROOT)]
    done = subprocess.run(program, env=devices(8), capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "eight devices agree with one", done.stderr[-3000:]


def test_garbage_is_collected_again_after_a_failure():
    def fails():
        with parallel.no_collection():
            assert not gc.isenabled()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fails()
    assert gc.isenabled()


def test_the_network_is_traced_once_for_its_checks_its_shapes_and_its_parameters(monkeypatch):
    calls, init = [], UNet.init_with_output
    monkeypatch.setattr(
        UNet, "init_with_output", lambda *arguments: calls.append(arguments) or init(*arguments)
    )
    beginning.cache_clear()
    build(tiny.tiny_config())  # of an equal network
    parts, key, layout = build(tiny.tiny_config()), jax.random.key(0), parallel.layout()
    where = layout.state(jax.eval_shape(parts.init_state, key))
    jax.eval_shape(lambda key: parallel.initial(parts.init_state, key, where), key)
    assert len(calls) == 1


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The name of a layout -> parameters after five steps, 16 samples, and the bytes of the state
    on a device."""
    folder = tmp_path_factory.mktemp("layouts")
    program = [sys.executable, str(TESTS / "layouts_program.py"), str(folder)]
    eight = ["pmap:pmap:1", "moved:mesh:1+auto:2"]
    started = [subprocess.Popen([*program, *eight], env=devices(8), **OUTPUT)]
    started += processes([[*program, "processes:auto:2"]] * 2)
    layouts_program.train(folder, "one:auto:1")
    for process in started:
        errors = process.communicate(timeout=500)[1]
        assert process.returncode == 0, errors[-3000:]
    return {path.stem: tiny.arrays(path) for path in folder.glob("*.npz")}


@pytest.mark.parametrize("name", ["pmap", "moved", "processes"])
def test_a_run_is_the_same_however_it_lies_on_devices(layouts, name):
    """Five steps from data to Adam, which makes steps of a gradient that is nothing but rounding.
    "moved" takes two of them on a mesh and three with a shared copy of the state. A U-Net's
    gradients are those of one device in devices_program.py."""
    one, found = layouts["one"], layouts[name]
    assert one.keys() == found.keys()
    names = [key for key in one if key not in ("samples", "held")]
    for key in names:
        np.testing.assert_allclose(found[key], one[key], rtol=1e-5, atol=2e-5, err_msg=key)
    squares = lambda arrays: sum((np.asarray(array, float) ** 2).sum() for array in arrays)
    assert squares(found[key] - one[key] for key in names) < 1e-10 * squares(
        one[key] for key in names
    )
    np.testing.assert_allclose(found["samples"], one["samples"], atol=1e-4)


def test_sharing_a_copy_of_the_state_shrinks_it(layouts):
    assert layouts["pmap"]["held"] == layouts["one"]["held"]
    config = tiny.mlp_config(fsdp=2)
    state = jax.eval_shape(build(config).init_state, jax.eval_shape(lambda: jax.random.key(0)))
    assert held(state, 2) == layouts["moved"]["held"] < held(state, 1) == layouts["one"]["held"]
    for name in ("moved", "processes"):
        assert layouts[name]["held"] < 0.6 * layouts["one"]["held"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("fsdp=3",), "config.training.fsdp=3 must divide the number of devices, 1"),
        (("parallel=pmop",), "did you mean 'pmap'?"),
    ],
)
def test_layouts_that_cannot_be(tmp_path, settings, message):
    arguments = ("--workdir", tmp_path / "run", "--config", experiment_file(tmp_path))
    with pytest.raises(UserError) as error:
        tiny.main_run(*arguments, *(f"--config.training.{setting}" for setting in settings))
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_state_of_given_parameters_holds_no_array_twice():
    """A teacher in `aux` that is the parameters themselves: a step could not be given both away."""
    init = lambda params, key: {"params": params, "teacher": params}
    given = {"kernel": jnp.ones(4)}
    whole = parallel.layout().whole
    placed = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole)
    where = jax.tree.map(placed, init(given, None))
    state = parallel.initial(init, given, where, jax.random.key(0))
    arrays = [given["kernel"], *jax.tree.leaves(state)]
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == 3
