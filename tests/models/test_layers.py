"""The U-Net's layers against Flax's."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import layers

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def close(actual, expected, tolerance=1e-5):
    """Within the tolerance of the largest expected number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("size", "stride", "image"), [(3, 1, 8), (3, 2, 8), (1, 1, 8), (3, 1, 16)])
def test_conv_is_flax_conv_with_its_parameters(size, stride, image):
    x = normal(2, image, image, 32)
    ours, theirs = (
        layers.Conv(40, size, jnp.float32, stride),
        nn.Conv(40, (size, size), stride, padding=size // 2),
    )
    params = ours.init(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, theirs.init(jax.random.key(0), x)))
    params = jax.tree.map(lambda a: a + 0.1, params)
    close(ours.apply(params, x), theirs.apply(params, x))


@pytest.mark.parametrize("moved", [False, True])
def test_group_norm_is_flax_group_norm(moved):
    x, scale, shift = 3 + 2 * normal(2, 4, 6, 96), normal(2, 96), normal(2, 96)
    theirs = nn.GroupNorm(32, epsilon=1e-5)
    params = jax.tree.map(lambda a: a + normal(*a.shape), theirs.init(jax.random.key(0), x))
    wide = lambda a: a[:, None, None]

    def expected(params, x, scale, shift):
        y = theirs.apply(params, x)
        return y * (1 + wide(scale)) + wide(shift) if moved else y

    actual = lambda params, x, scale, shift: layers.GroupNorm().apply(
        params, x, *([scale, shift] if moved else [])
    )
    close(actual(params, x, scale, shift), expected(params, x, scale, shift))
    weights = normal(2, 4, 6, 96)
    gradients = lambda f: jax.grad(lambda *a: jnp.sum(weights * f(*a)), argnums=(0, 1, 2, 3))(
        params, x, scale, shift
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * max(np.abs(b).max(), 1)),
        gradients(actual),
        gradients(expected),
    )


def test_group_norm_with_silu_is_silu_of_group_norm():
    x, scale, shift = 3 + 2 * normal(2, 4, 6, 96), normal(2, 96), normal(2, 96)
    params = jax.tree.map(
        lambda a: a + normal(*a.shape), layers.GroupNorm().init(jax.random.key(0), x)
    )
    arguments, tangents = (
        (params, x, scale, shift),
        (params, normal(*x.shape), normal(2, 96), normal(2, 96)),
    )
    actual, expected = (
        layers.GroupNorm(silu=True).apply,
        lambda *a: nn.silu(layers.GroupNorm().apply(*a)),
    )
    for one, other in zip(
        jax.jvp(actual, arguments, tangents), jax.jvp(expected, arguments, tangents), strict=True
    ):
        close(one, other)
    reverse = lambda f: jax.vjp(f, *arguments)[1](tangents[1])
    jax.tree.map(close, reverse(actual), reverse(expected))


def normalise(x, groups):
    """GroupNorm of [N, C] over all positions and a group's channels, without scale and shift,
    float64."""
    x = np.asarray(x, np.float64)
    of_group = x.reshape(len(x), groups, -1)
    mean, variance = of_group.mean((0, 2), keepdims=True), of_group.var((0, 2), keepdims=True)
    return ((of_group - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (8, 8)])
def test_group_norm_has_32_groups_or_as_many_as_divide(channels, groups):
    x = 0.01 * np.random.default_rng(2).standard_normal(
        (2, 5, channels), np.float32
    )  # small: epsilon counts
    output, _ = layers.GroupNorm().init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(output, [normalise(a, groups) for a in x], atol=1e-4)


def test_attention_is_a_softmax_loop():
    heads, (h, w, c) = 4, (3, 2, 64)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, h, w, c), np.float32)
    module = layers.SelfAttention(heads)
    shapes = jax.eval_shape(lambda key: module.init(key, x)["params"], jax.random.key(0))
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) / 4, shapes)

    expected = []
    for image in x.reshape(2, h * w, c):
        a = normalise(image, 32) * params["norm"]["scale"] + params["norm"]["bias"]
        q, k, v = np.split(a @ params["qkv"]["kernel"] + params["qkv"]["bias"], 3, axis=1)
        mixed, size = np.zeros_like(q), c // heads
        for head in range(heads):
            at = slice(head * size, (head + 1) * size)
            for i in range(h * w):
                weights = np.exp([q[i, at] @ k[j, at] / math.sqrt(size) for j in range(h * w)])
                mixed[i, at] = weights @ v[:, at] / weights.sum()
        expected.append(image + mixed @ params["out"]["kernel"] + params["out"]["bias"])

    output = jax.jit(module.apply)({"params": params}, x).reshape(2, h * w, c)
    np.testing.assert_allclose(output, expected, atol=2e-4)


def test_dropout_drops_a_share_and_keeps_the_mean():
    """Of 2^18 numbers, within five deviations; two neighbours share a word and are independent."""
    x, rate = jnp.ones((64, 64, 65)), 0.3
    layer = layers.Dropout(rate)
    y = np.asarray(layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    exact = round(rate * 2**16) / 2**16
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1.0 / (1.0 - exact))}
    kept, deviation = y > 0, np.sqrt(exact * (1 - exact) / y.size)
    assert abs(kept.mean() - (1 - exact)) < 5 * deviation
    both = (kept[..., 0:64:2] & kept[..., 1:64:2]).mean()
    assert abs(both - (1 - exact) ** 2) < 5 * np.sqrt(2) * deviation
    half = layer.apply({}, x.astype(jnp.bfloat16), True, rngs={"dropout": jax.random.key(0)})
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(half, np.float32) > 0, kept)


def test_dropout_does_nothing_where_nothing_is_trained_or_dropped():
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(layers.Dropout(0.5).apply({}, x, False), x)
    np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, True), x)
