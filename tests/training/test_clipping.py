"""Norms over trees of small and large arrays, and clipping by them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.training import clipping
from diffusion_jax.training.clipping import SMALL, clip_by_global_norm, global_norm


def tree(scale=1.0):
    rng = np.random.default_rng(0)
    shapes = {
        "scalar": (),
        "bias": (7,),
        "last small": (SMALL - 1,),
        "first large": (SMALL,),
        "kernel": (3, 3, 16, 32),
    }
    return {
        name: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    "keep",
    [slice(None), slice(0, 3), slice(3, None), slice(0, 0)],
    ids=["all", "small", "large", "none"],
)
def test_the_norm_is_that_of_all_numbers(keep):
    arrays = list(tree().values())[keep]
    expected = np.sqrt(sum(np.sum(np.square(np.float64(array))) for array in arrays))
    np.testing.assert_allclose(global_norm(arrays), expected, rtol=1e-6)


@pytest.mark.parametrize("limit", [1.0, 1e6])
def test_clipping_is_optaxs(limit):
    ours, theirs = (
        clip.update(tree(), clip.init(tree()))[0]
        for clip in (clip_by_global_norm(limit), optax.clip_by_global_norm(limit))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
    expected = min(limit, np.sqrt(sum(np.sum(np.square(np.float64(a))) for a in tree().values())))
    np.testing.assert_allclose(global_norm(ours), expected, rtol=1e-6)


def test_gradients_of_zero_stay_so_and_nan_is_not_hidden():
    update = lambda gradients: clip_by_global_norm(1.0).update(gradients, optax.EmptyState())[0]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(update(tree(0.0))))
    assert all(
        np.all(np.isnan(leaf))
        for leaf in jax.tree.leaves(update(tree() | {"scalar": jnp.float32(np.nan)}))
    )


def test_the_norm_is_the_same_in_the_form_for_accelerators():
    rng = np.random.default_rng(1)
    shapes = [(SMALL,), (3, 3, 16, 32), (SMALL,), (64, 32), (3, 3, 16, 32)]
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    expected = sum(np.sum(np.square(np.float64(array))) for array in arrays)
    for form in (clipping._squares, clipping._squares_by_shape):
        np.testing.assert_allclose(form(arrays), expected, rtol=1e-6)
