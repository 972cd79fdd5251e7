"""The autoencoders' shapes, parameters and codes, and the critic's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.types import Kind, Kinds, Shape
from diffusion_jax.models.autoencoder import Autoencoder, autoencoder
from diffusion_jax.models.shuffles import Shuffle, Unshuffle, shuffled, unshuffled

SHAPE = Shape((8, 8, 3))
TINY = {"channels": 4, "channel_mult": (1, 2), "blocks": 1, "attention": False}


def shapes(module: Autoencoder, shape=SHAPE):
    init = lambda key: module.init(key, jnp.zeros((1, *shape)))["params"]
    return jax.eval_shape(init, jax.random.key(0))


def test_the_default_has_the_parameters_of_stable_diffusions():
    """83,653,863, as `AutoencoderKL` of diffusers 0.35 counts them for its configuration."""
    params = shapes(autoencoder(Shape((64, 64, 3)), Kinds()), (64, 64, 3))
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(params)) == 83_653_863


@pytest.mark.parametrize("regularizer", ["kl", "vq", "fsq", "none"])
@pytest.mark.parametrize("shortcuts", [False, True])
def test_latents_are_a_part_of_the_image_and_come_back(regularizer, shortcuts):
    of = {"latent": 2, "levels": (5, 3), "codebook": 11, "critic": 8, "critic_layers": 2}
    module = autoencoder(SHAPE, Kinds(), regularizer=regularizer, shortcuts=shortcuts, **of, **TINY)
    params, x = shapes(module), jnp.zeros((5, 8, 8, 3))
    method = lambda name, *given: jax.eval_shape(
        lambda params: module.apply({"params": params}, *given, method=name), params
    )
    assert method("encode", x).shape == (5, 4, 4, 4 if regularizer == "kl" else 2)
    z = jnp.zeros((5, 4, 4, 2))
    image, h = method("decode", z, True)
    assert (image.shape, h.shape) == ((5, 8, 8, 3), (5, 8, 8, 4))
    assert method("quantize", z).shape == z.shape
    assert method("judge", x).shape == (5, 2, 2, 1)
    assert method("__call__", x).shape == x.shape
    own = {"critic"} | ({"codebook"} if regularizer == "vq" else set())
    assert own <= set(params)
    assert regularizer != "vq" or params["codebook"].shape == (11, 2)
    latents, codes = module.latents, {"vq": 11, "fsq": 15}.get(regularizer, 0)
    assert (latents.regularizer, latents.codes, latents.critic) == (regularizer, codes, True)


def test_without_a_critic_there_are_no_parameters_of_one():
    module = autoencoder(SHAPE, Kinds(), **TINY)
    assert "critic" not in shapes(module) and not module.latents.critic


def test_what_is_decoded_was_quantised():
    """Two latents with the same code are decoded to the same image, to the bit."""
    module = autoencoder(SHAPE, Kinds(), latent=2, regularizer="fsq", levels=(3, 3), **TINY)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32), shapes(module))
    z = np.stack([np.full((4, 4, 2), v, np.float32) for v in (0.1, 0.2, 1.5)])
    method = lambda name: jax.jit(lambda z: module.apply({"params": params}, z, method=name))(z)
    images, codes = method("decode"), method("quantize")
    np.testing.assert_array_equal(images[0], images[1])
    assert float(jnp.abs(images[0] - images[2]).max()) > 1e-3
    np.testing.assert_array_equal(codes[:, 0, 0], [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])


def test_pixels_are_shuffled_as_pytorch_does():
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    found = np.asarray(unshuffled(x))
    for c in range(3):
        for dy in (0, 1):
            for dx in (0, 1):
                expected = x[:, dy::2, dx::2, c]
                np.testing.assert_array_equal(found[..., 4 * c + 2 * dy + dx], expected)
    np.testing.assert_array_equal(shuffled(found), x)


def test_shortcuts_are_means_and_copies_where_the_convolution_is_zero():
    """As many channels after as before: means of two by two, and nearest neighbours."""
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 8)).astype(np.float32)

    def of(module):
        params = module.init(jax.random.key(0), x)
        return np.asarray(module.apply(jax.tree.map(jnp.zeros_like, params), x))

    means = x.reshape(1, 2, 2, 2, 2, 8).mean((2, 4))
    np.testing.assert_allclose(of(Unshuffle(8, jnp.float32)), means, atol=1e-6)
    np.testing.assert_array_equal(of(Shuffle(8, jnp.float32)), x.repeat(2, 1).repeat(2, 2))
    pairs = np.asarray(unshuffled(x)).reshape(1, 2, 2, 16, 2).mean(-1)
    np.testing.assert_allclose(of(Unshuffle(16, jnp.float32)), pairs, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regularizer": "vae"}, "regularizer is one of kl, vq, fsq, none, not 'vae'"),
        ({"regularizer": "fsq", "latent": 3}, "each of the latent=3 channels"),
        ({"regularizer": "fsq", "levels": (8, 5, 5, 1)}, "at least 2"),
        ({"codebook": 0}, "codebook must be above 0, not 0"),
        ({"critic": -1}, "critic must be at least 0, not -1"),
        ({"critic_layers": 0}, "critic_layers must be at least 1, not 0"),
        ({"shortcuts": True, "channel_mult": (1, 3)}, "shortcuts need levels"),
        ({"channel_mult": (1, 1, 1, 1, 1)}, "cannot be halved 4 times"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        autoencoder(SHAPE, Kinds(), **{**TINY, **changes})


def test_an_autoencoder_is_told_nothing():
    with pytest.raises(ValueError, match="is told nothing, not label"):
        autoencoder(SHAPE, Kinds(label=Kind("index", 3)), **TINY)
