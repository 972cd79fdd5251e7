"""The training state: trained and frozen parameters, on disk and on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from diffusion_jax.core.errors import UserError
from diffusion_jax.devices.parallel import Layout
from diffusion_jax.runs.build import build, parameters
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.state import init_state, split, whole

PARAMS = {
    "down0": {"conv1": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}, "norm": jnp.ones(4)},
    "down1": {"conv1": {"kernel": jnp.full((3, 4), 2.0), "bias": jnp.ones(4)}},
    "out": {"kernel": jnp.arange(6.0).reshape(2, 3)},
}


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(key.key for key in path) for path, _ in leaves}


@pytest.mark.parametrize(
    ("pattern", "frozen"),
    [
        ("^out", {"out/kernel"}),
        ("conv1/kernel", {"down0/conv1/kernel", "down1/conv1/kernel"}),
        ("down1|norm$", {"down1/conv1/kernel", "down1/conv1/bias", "down0/norm"}),
    ],
)
def test_frozen_are_those_whose_path_the_expression_is_found_in(pattern, frozen):
    trained, still = split(PARAMS, pattern)
    assert paths(still) == frozen
    assert paths(trained) == paths(PARAMS) - frozen
    again = whole(trained, still)
    assert jax.tree.structure(again) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, again, PARAMS)


def test_without_an_expression_nothing_is_frozen():
    assert split(PARAMS, "") == (PARAMS, ())
    assert whole(PARAMS, ()) is PARAMS


@pytest.mark.parametrize(("pattern", "named"), [("up", "none"), ("o", "all"), ("kernel$|", "all")])
def test_an_expression_of_all_or_none_is_refused(pattern, named):
    with pytest.raises(ValueError, match=f"names {named} of the parameters"):
        split(PARAMS, pattern)


def frozen_state(step):
    params = jax.tree.map(lambda a: a + step, PARAMS)
    trained, still = split(params, "down")
    history = {"losses": jnp.arange(12.0).reshape(3, 4) / 7 + step, "counts": jnp.arange(3)}
    state = init_state(trained, optax.adam(1e-3), still, {"timesteps": history})
    return state.replace(step=jnp.int32(step))


def test_a_checkpoint_holds_frozen_parameters_and_the_objectives_state(tmp_path):
    checkpoints, state = Checkpoints(tmp_path), frozen_state(3)
    checkpoints.save(state, {}, wait=True)
    checkpoints.close()
    like = jax.eval_shape(lambda: frozen_state(0))
    found, _ = Checkpoints(tmp_path, read_only=True).restore(like)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    for value, expected in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert np.asarray(value).tobytes() == np.asarray(expected).tobytes()
    other = like.replace(frozen=())
    with pytest.raises(UserError, match="cannot be read"):
        Checkpoints(tmp_path, read_only=True).restore(other)


def test_of_a_state_that_devices_share_the_objectives_part_is_whole_on_each():
    """By its shapes alone: the mesh is one of two devices that this process lacks."""
    mesh = jax.sharding.AbstractMesh((1, 2), ("data", "fsdp"))
    large = {"a": {"w": jnp.zeros((64, 64))}, "b": {"w": jnp.zeros((64, 32))}}

    def make():
        trained, still = split(large, "^b")
        aux = {"teacher": jnp.zeros((64, 64)), "keys": jax.random.split(jax.random.key(0), 4)}
        return init_state(trained, optax.adam(1e-3), still, aux)

    placed = Layout(mesh, pmapped=False).state(jax.eval_shape(make))
    cut = lambda tree: {str(a.sharding.spec) for a in jax.tree.leaves(tree)}
    whole_spec = str(jax.sharding.PartitionSpec())
    assert cut(placed.aux) == {whole_spec}
    for tree in (placed.params, placed.ema_params, placed.frozen):
        assert all("fsdp" in spec for spec in cut(tree))
    assert any("fsdp" in spec for spec in cut(placed.opt_state))
    assert placed.aux["teacher"].shape == (64, 64)


def test_a_run_trains_what_it_does_not_freeze():
    parts = build(tiny.tiny_config(freeze="^(time|label)"))
    state = jax.eval_shape(parts.init_state, jax.random.key(0))
    everything = jax.eval_shape(parts.init_params, jax.random.key(0))
    assert set(state.frozen) == {"time1", "time2", "label"}
    assert paths(state.params) == paths(state.ema_params)
    assert paths(state.params) | paths(state.frozen) == paths(everything)
    moments = [a.shape for a in jax.tree.leaves(state.opt_state) if a.ndim]
    assert sorted(moments) == sorted(2 * [a.shape for a in jax.tree.leaves(state.params) if a.ndim])
    for ema in (True, False):
        assert jax.tree.structure(parameters(state, ema)) == jax.tree.structure(everything)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("up9", "'up9' names none of the parameters"), ("(", "is no regular expression: missing")],
)
def test_an_expression_that_freezes_nothing_is_said_before_a_run_begins(pattern, message):
    with pytest.raises(UserError, match=rf"config\.training\.freeze: .*{message}"):
        build(tiny.tiny_config(freeze=pattern))
