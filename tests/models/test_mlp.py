"""The multilayer perceptron, which takes data of any shape."""

import functools
import math
import re

import jax
import numpy as np
import pytest

from diffusion_jax.core.types import Kind
from diffusion_jax.models.mlp import mlp

RNG = np.random.default_rng(0)
T = np.array([3.0, 400.0, 999.0], np.float32)
SHAPES = [(2,), (5, 3), (4, 4, 3), (2, 4, 4, 1)]
small = functools.partial(mlp, kinds={}, width=16, depth=2)


def shapes_of(model, x):
    return jax.eval_shape(lambda key: model.init(key, x, T)["params"], jax.random.key(0))


def random_params(model, x):
    rng = np.random.default_rng(1)
    draw = lambda a: rng.standard_normal(a.shape, np.float32) / math.sqrt(math.prod(a.shape[:-1]))
    return jax.tree.map(draw, shapes_of(model, x))


def apply(model, params, x, t=T):
    return jax.jit(model.apply)({"params": params}, x, t)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("learned_variance", [False, True])
def test_output_has_the_shape_of_the_input_or_twice_the_channels(shape, learned_variance):
    model = small(shape, learned_variance=learned_variance)
    x = RNG.standard_normal((3, *shape), np.float32)
    output, _ = jax.eval_shape(lambda key: model.init_with_output(key, x, T), jax.random.key(0))
    assert output.shape == (3, *shape[:-1], shape[-1] * (1 + learned_variance))
    assert output.dtype == np.float32


def test_output_is_zero_at_initialisation():
    x = RNG.standard_normal((3, 5, 2), np.float32)
    output, variables = jax.jit(small((5, 2)).init_with_output)(jax.random.key(0), x, T)
    assert np.all(output == 0.0)
    flat = jax.tree_util.tree_leaves_with_path(variables["params"])
    zero = {path[0].key for path, a in flat if path[-1].key == "kernel" and not np.any(a)}
    assert zero == {"dense_out"}


def test_the_shape_means_nothing_to_it():
    """An image and the vector of its pixels have the same network."""
    x = RNG.standard_normal((3, 4, 4, 3), np.float32)
    params = random_params(small((4, 4, 3)), x)
    flat = apply(small((48,)), params, x.reshape(3, 48))
    output = apply(small((4, 4, 3)), params, x)
    np.testing.assert_array_equal(output.reshape(3, 48), flat)
    assert np.abs(flat).max() > 0.01


def test_every_example_is_its_own_and_t_counts():
    x = np.repeat(RNG.standard_normal((1, 6), np.float32), 3, axis=0)
    model = small((6,))
    params = random_params(model, x)
    output = apply(model, params, x)
    alone = apply(model, params, x[:1], T[:1])
    np.testing.assert_allclose(output[0], alone[0], atol=1e-5)
    assert np.abs(output[0] - output[1]).max() > 1e-3
    scaled = apply(small((6,), time_scale=1000.0), params, x, T / 1000)
    np.testing.assert_allclose(output, scaled, atol=1e-3)


def test_it_learns_a_line():
    """Its gradient leads somewhere: from x = 2 u - 1 to u, to a thousandth."""
    x = np.linspace(-1, 1, 32, dtype=np.float32)[:, None]
    model, t = small((1,)), np.zeros(32, np.float32)
    loss = lambda params: ((model.apply({"params": params}, x, t) - (x + 1) / 2) ** 2).mean()
    params = jax.jit(model.init)(jax.random.key(0), x, t)["params"]
    step = jax.jit(lambda p: jax.tree.map(lambda a, g: a - 0.1 * g, p, jax.grad(loss)(p)))
    for _ in range(300):
        params = step(params)
    assert jax.jit(loss)(params) < 1e-3


def test_equal_settings_make_equal_networks():
    kinds = {"label": Kind("index", 4), "angle": Kind("vector", 3)}
    assert mlp((2,), kinds) == mlp((2,), dict(kinds)) and hash(mlp((2,), kinds))
    assert mlp((2,), kinds) != mlp((2,), kinds, width=64)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((), {}, "shape must have at least one axis, and none of 0, not ()"),
        ((3, 0), {}, "shape must have at least one axis, and none of 0, not (3, 0)"),
        ((2,), {"width": 0}, "width must be above 0, not 0"),
        ((2,), {"depth": -1}, "depth must be above 0, not -1"),
        ((2,), {"time_scale": math.nan}, "time_scale must be finite, not nan"),
    ],
)
def test_settings_out_of_range_are_refused(shape, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mlp(shape, {}, **settings)
