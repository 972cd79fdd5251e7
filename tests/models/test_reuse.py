"""Deep features that are used again: what a plain network gives whose inner module is replaced."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest

from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.models.dit import dit
from diffusion_jax.models.reuse import Reuse
from diffusion_jax.models.unet import UNet

SMALL = UNet(out_channels=1, channels=16, channel_mult=(1, 2), blocks=1, attention_factors=())
DIT = dit(Shape((8, 8, 1)), Kinds(), width=16, depth=4, heads=2, patch=4)
X, OTHER = np.random.default_rng(0).standard_normal((2, 2, 8, 8, 1)).astype(np.float32)
T = np.array([1.0, 500.0], np.float32)
near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-4)  # values of about 5


def random_params(model):
    """Parameters none of which is zero."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), X, T)["params"])
    draw = lambda a: rng.standard_normal(a.shape, np.float32) / max(1, np.prod(a.shape[:-1])) ** 0.5
    return jax.tree.map(lambda a: draw(a).astype(np.float32), shapes)


def apply(model, params, x, t, reuse=None):
    return jax.jit(lambda params, x, t, deep: model.apply(
        {"params": params}, x, t,
        reuse=None if reuse is None else reuse._replace(deep=deep),
    ))(params, x, t, None if reuse is None else reuse.deep)  # fmt: skip


def seen(model, params, x, t, wanted, change=lambda name, given, output: output):
    """(the plain network's output, its module `wanted`'s), change(name, input, output) in place of
    its modules' outputs."""

    def run(params, x, t):
        found = {}

        def interceptor(call, arguments, named, context):
            output = call(*arguments, **named)
            if context.method_name != "__call__":
                return output
            name = "/".join(context.module.path)
            found[name] = change(name, arguments[0], output)
            return found[name]

        with nn.intercept_methods(interceptor):
            return model.apply({"params": params}, x, t), found[wanted]

    return jax.jit(run)(params, x, t)


@pytest.mark.parametrize(("blocks", "before"), [(0, "up0_block0"), (1, "up1_resample")])
def test_the_unets_deep_features_are_what_enters_the_last_blocks(blocks, before):
    params = random_params(SMALL)
    whole, deep = apply(SMALL, params, X, T, Reuse(blocks))
    plain, entered = seen(SMALL, params, X, T, before)
    near(whole, plain)
    near(deep, entered)

    # at another x and t, where the module before gives what it gave
    again, same = apply(SMALL, params, OTHER, T + 7, Reuse(blocks, deep))
    keep = lambda name, given, output: deep if name == before else output
    expected, _ = seen(SMALL, params, OTHER, T + 7, before, keep)
    near(again, expected)
    np.testing.assert_array_equal(same, deep)
    assert abs(np.asarray(again - whole)).max() > 0.01


def test_a_transformer_keeps_what_its_middle_blocks_add():
    model = DIT
    params = random_params(model)
    whole, deep = apply(model, params, X, T, Reuse(1))
    near(whole, apply(model, params, X, T))
    entered = []

    def add(name, given, output):
        if name == "block1":
            entered.append(given)
        return entered[-1] + deep if name == "block2" else output

    again, _ = apply(model, params, OTHER, T + 7, Reuse(1, deep))
    expected, _ = seen(model, params, OTHER, T + 7, "block2", add)
    near(again, expected)
    assert abs(np.asarray(again - whole)).max() > 0.01


@pytest.mark.parametrize("model", [SMALL, DIT])
def test_more_blocks_than_there_are_are_refused(model):
    params = random_params(model)
    with pytest.raises(ValueError, match="blocks must be at most 1 of this network, not 2"):
        jax.eval_shape(lambda: model.apply({"params": params}, X, T, reuse=Reuse(2)))
