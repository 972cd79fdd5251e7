"""The U-Net's layers against Flax's and XLA's plain forms, and float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_jax.models.attention import attend, attend_by_keys

from diffusion_jax.models import convolution, layers, winograd

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape, np.float32)


def plain(x, kernel, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def close(actual, expected, tolerance=1e-5):
    """Within the tolerance of the largest expected number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 20, 6), (3, 4, 5)])
def test_winograd_is_the_plain_convolution(shape):
    x, kernel = normal(*shape, 32), normal(3, 3, 32, 48) / 17
    with jax.enable_x64(True):
        exact = plain(np.float64(x), np.float64(kernel))
    close(jax.jit(winograd.convolve)(x, kernel), exact)


def test_winograd_has_the_plain_derivatives():
    x, kernel, dx, dkernel, dy = (
        normal(2, 16, 8, 32),
        normal(3, 3, 32, 32),
        normal(2, 16, 8, 32),
        normal(3, 3, 32, 32),
        normal(2, 16, 8, 32),
    )
    forward = lambda f: jax.jvp(f, (x, kernel), (dx, dkernel))
    for actual, expected in zip(forward(winograd.convolve), forward(plain), strict=True):
        close(actual, expected)
    for actual, expected in zip(
        *(jax.vjp(f, x, kernel)[1](dy) for f in (winograd.convolve, plain)), strict=True
    ):
        close(actual, expected)


def test_winograd_pays_for_large_images_of_many_channels_in_float32():
    image = lambda size, channels, dtype=jnp.float32: jax.ShapeDtypeStruct(
        (1, size, size, channels), dtype
    )
    kernel = lambda size, channels: jax.ShapeDtypeStruct(
        (size, size, channels, channels), jnp.float32
    )
    assert winograd.pays(image(16, 32), kernel(3, 32)) == (jax.default_backend() == "cpu")
    for x, k in [
        (image(8, 32), kernel(3, 32)),
        (image(18, 32), kernel(3, 32)),
        (image(16, 16), kernel(3, 16)),
    ]:
        assert not winograd.pays(x, k)
    assert not winograd.pays(image(16, 32), kernel(1, 32))
    assert not winograd.pays(image(16, 32, jnp.bfloat16), kernel(3, 32))


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_upsampled_convolution_is_upsampling_then_convolution(size):
    x, kernel = normal(2, *size, 8), normal(3, 3, 8, 6)
    both = lambda f: (
        jax.jit(f)(x, kernel),
        *jax.vjp(f, x, kernel)[1](jnp.ones((2, 2 * size[0], 2 * size[1], 6))),
    )
    twice = lambda x: jax.image.resize(x, (2, 2 * size[0], 2 * size[1], 8), "nearest")
    for actual, expected in zip(
        both(convolution.upsampled_convolve), both(lambda x, k: plain(twice(x), k)), strict=True
    ):
        close(actual, expected)


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


def test_silu_does_not_keep_its_argument():
    """What the backward pass keeps of a norm with SiLU is the image it was given, and nothing else
    of its size."""
    x, factor, summand = normal(2, 8, 8, 32), normal(2, 32), normal(2, 32)
    kept = jax.tree.leaves(jax.vjp(layers.affine_silu, x, factor, summand)[1])
    assert sum(a.size == x.size for a in kept) == 1


def test_attend_is_the_library_attention():
    q, k, v, dy = (normal(2, 3, 7, 5) for _ in range(4))
    heads_last = lambda a: jnp.swapaxes(a, 1, 2)
    expected = lambda q, k, v: heads_last(jax.nn.dot_product_attention(*map(heads_last, (q, k, v))))
    pull = lambda f: (lambda value, back: (value, *back(dy)))(*jax.vjp(f, q, k, v))
    both_modes = lambda f: (f(q, k, v), *pull(f), *jax.jvp(f, (q, k, v), (v, q, k)))
    for actual, wanted in zip(both_modes(attend), both_modes(expected), strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("attend", [attend, attend_by_keys])
def test_attend_stays_finite_for_large_logits(attend):
    q, k, v = 1e3 * normal(1, 1, 4, 8), 1e3 * normal(1, 1, 4, 8), normal(1, 1, 4, 8)
    largest = np.argmax(q[0, 0] @ k[0, 0].T, axis=1)
    close(attend(q, k, v)[0, 0], v[0, 0][largest])
