import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

from diffusion_jax.config import load
from diffusion_jax.errors import UserError
from diffusion_jax.training.checkpoint import Checkpoints, open_workdir
from diffusion_jax.training.state import init_state


def some_state(step):
    params = {"w": jax.random.normal(jax.random.key(step), (300, 40)), "b": jnp.arange(3.0)}
    state = init_state(params, optax.adam(1e-3))
    return state.replace(step=jnp.int32(step), ema_params=jax.tree.map(lambda a: a + 1, params))


@pytest.fixture
def saved(tmp_path):
    """A workdir with the checkpoints of steps 3 and 5."""
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 5):
        checkpoints.save(some_state(step), {"data": {"next_index": step}}, wait=True)
    checkpoints.close()
    return tmp_path


def test_the_newest_comes_back_bit_for_bit(saved):
    state, extra = Checkpoints(saved, read_only=True).restore(some_state(0))
    jax.tree.map(np.testing.assert_array_equal, state, some_state(5))
    assert jax.tree.structure(state) == jax.tree.structure(some_state(5))
    assert extra == {"data": {"next_index": 5}}


def test_only_the_newest_are_kept(saved):
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(some_state(8), {}, wait=True)
    checkpoints.close()
    assert sorted(int(path.name) for path in (saved / "checkpoints").iterdir()) == [5, 8]


def test_one_cut_short_is_named_with_the_way_out_and_left_alone(saved):
    files = [path for path in (saved / "checkpoints" / "5" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"checkpoints/5 cannot be read; move that folder away to go on from step 3"):
        Checkpoints(saved, read_only=True).restore(some_state(0))
    assert largest.stat().st_size == 1000


def test_without_a_checkpoint_there_is_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        Checkpoints(tmp_path, read_only=True)


def test_a_workdir_of_another_experiment_is_refused_with_the_fields(tmp_path):
    config = tiny_config()
    open_workdir(tmp_path / "run", config)
    assert load(tmp_path / "run" / "config.json") == config
    config.training.num_steps, config.sampling.num = 99, 7  # how long and what to draw may change
    open_workdir(tmp_path / "run", config)
    assert load(tmp_path / "run" / "config.json") == config
    config.model.channels, config.seed = 32, 5
    with pytest.raises(UserError, match="seed: 0 -> 5; model.channels: 16 -> 32"):
        open_workdir(tmp_path / "run", config)
    assert load(tmp_path / "run" / "config.json").model.channels == 16


def test_a_longer_run_is_another_experiment_where_the_learning_rate_depends_on_its_length(tmp_path):
    config = tiny_config(decay="cosine")
    open_workdir(tmp_path / "run", config)
    config.training.num_steps = 99
    with pytest.raises(UserError, match="training.num_steps: 8 -> 99"):
        open_workdir(tmp_path / "run", config)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        open_workdir(tmp_path, tiny_config())
    with pytest.raises(UserError, match="cannot be written"):
        open_workdir(tmp_path / "thesis.tex" / "run", tiny_config())
