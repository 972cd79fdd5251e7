"""Keys: one generator whatever JAX's default, typed or legacy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.core import noise
from diffusion_jax.core.timesteps import TIMESTEPS

INDEX = np.array([0, 3, 2**31 + 5], np.uint32)


@pytest.fixture(params=["rbg", "unsafe_rbg"])
def other_default(request):
    before = jax.config.jax_default_prng_impl
    jax.config.update("jax_default_prng_impl", request.param)
    yield request.param
    jax.config.update("jax_default_prng_impl", before)


def _recorded(seed):
    """Threefry's numbers of three examples, by JAX's own functions."""
    key = jax.random.key(seed, impl="threefry2x32")
    keys = [jax.random.fold_in(key, i) for i in INDEX]
    return np.stack([jax.random.normal(key, (5,)) for key in keys])


def test_keys_of_threefry_have_the_bits_that_jax_gives_them():
    found = noise.normal(noise.example_keys(jax.random.key(7), INDEX), (5,))
    np.testing.assert_array_equal(found, _recorded(7))
    assert noise.threefry(jax.random.key(7)) == jax.random.key(7)


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 1])
def test_a_seed_gives_the_same_noise_under_every_default(other_default, seed):
    keys = noise.example_keys(noise.key(seed), INDEX)
    np.testing.assert_array_equal(noise.normal(keys, (5,)), _recorded(seed))
    if other_default == "rbg":  # whose halves are Threefry's, also after fold_in and split
        keys = noise.example_keys(jax.random.key(seed), INDEX)
        np.testing.assert_array_equal(noise.normal(keys, (5,)), _recorded(seed))
        folded = noise.threefry(jax.random.fold_in(jax.random.key(seed), 3))
        assert folded == jax.random.fold_in(noise.key(seed), 3)


def test_all_four_words_of_a_key_count(other_default):
    key = jax.random.key(0)
    words = np.array(jax.random.key_data(key))
    assert words.shape == (4,)
    for i in range(4):
        changed = words.copy()
        changed[i] += 1
        other = noise.threefry(jax.random.wrap_key_data(jnp.asarray(changed)))
        assert other != noise.threefry(key)


def test_an_example_does_not_depend_on_its_batch(other_default):
    keys = jax.random.split(jax.random.key(1), 4)
    draw = lambda keys: noise.normal(noise.fold_in(keys, 2), (3,))
    np.testing.assert_array_equal(draw(keys)[2:3], draw(keys[2:3]))
    schedule = dj.schedules.cosine(50)
    for name in TIMESTEPS:
        timesteps = TIMESTEPS[name](schedule)
        t = lambda index, timesteps=timesteps: timesteps.sample(
            timesteps.init(), jax.random.key(3), index, 8
        )[0]
        np.testing.assert_array_equal(t(np.arange(8))[5:6], t(np.arange(5, 6)), err_msg=name)


def test_legacy_keys_are_the_typed_ones_of_their_words():
    legacy = jax.random.PRNGKey(5)
    assert legacy.dtype == jnp.uint32
    keys, typed = noise.example_keys(legacy, INDEX), noise.example_keys(jax.random.key(5), INDEX)
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(typed))
    words = jax.random.key_data(typed)
    np.testing.assert_array_equal(noise.normal(words, (3,)), noise.normal(typed, (3,)))
    grid = dj.respaced(dj.schedules.cosine(20), "4")
    x = dj.initial_noise(words, (3,), jax.tree.map(lambda a: a[0], grid))
    denoiser = dj.make_denoiser(lambda params, x, t, cond: jnp.tanh(x), None, dj.predictions.v())
    np.testing.assert_array_equal(
        dj.sample(dj.ancestral(), denoiser, words, x, grid),
        dj.sample(dj.ancestral(), denoiser, typed, x, grid),
    )


def test_other_arrays_are_no_keys():
    with pytest.raises(ValueError, match="int"):
        noise.normal(np.arange(3), (2,))
