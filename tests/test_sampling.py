"""How a run draws: what is compiled once, what guidance is given, and what a seed decides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from diffusion_jax import samplers
from diffusion_jax.build import build
from diffusion_jax.denoisers import autoguidance, classifier_free, clip_x0, dynamic_threshold, make_denoiser
from diffusion_jax.errors import UserError
from diffusion_jax.samplers.cached import cached
from diffusion_jax.sampling import make_generate
from diffusion_jax.types import Level

INDEX = np.arange(3, 7)
PARAMS, WEAK = {"a": np.float32(0.9)}, {"a": np.float32(0.5)}


def run_of(calls=None, **sampling):
    """(config, parts) of a run trained with label dropout, its network replaced by one line that notes its batches."""

    def apply_fn(params, x, t, cond=None, dropout_key=None):
        if calls is not None:
            calls.append(x.shape[0])
        return params["a"] * jnp.sin(3 * x + 0.2 * cond[:, None, None, None] + 0.1 * t[:, None, None, None])

    config = tiny_config(label_dropout=0.1)
    config.diffusion.prediction = "v"
    for name, value in ({"sampler": "ddim"} | sampling).items():
        setattr(config.sampling, name, value)
    return config, build(config)._replace(apply_fn=apply_fn)


def expected(config, parts, denoiser, seed=0, sampler=None):
    """The samples number INDEX by a denoiser, written out."""
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(INDEX)
    first, second = (jax.vmap(lambda key, number=number: jax.random.fold_in(key, number))(keys) for number in (0, 1))
    x_init = samplers.initial_noise(first, config.data.shape, Level(*(a[0] for a in parts.grid)))
    return samplers.sample(parts.sampler if sampler is None else sampler, denoiser, second, x_init, parts.grid)


def two(parts):
    """The denoisers with the labels of the samples number INDEX, and with none, which is the eleventh."""
    conditional = make_denoiser(parts.apply_fn, PARAMS, parts.parameterization, INDEX.astype(np.int32))
    return conditional, conditional._replace(cond=np.full(4, 10, np.int32))


def test_seeds_and_weights_compile_nothing_anew():
    calls = []
    config, parts = run_of(calls, guidance=1.0)
    generate = make_generate(config, parts)
    images = generate(PARAMS, INDEX)
    traced = len(calls)
    assert set(calls) == {8}  # both halves in one call
    others = [generate(PARAMS, INDEX, w=2.5), generate(PARAMS, INDEX, seed=2**32 - 1), generate(PARAMS, INDEX + 1)]
    others += [generate(PARAMS, INDEX, seed=np.arange(4), w=np.linspace(0, 3, 4))]
    assert len(calls) == traced
    assert all(abs(images - other).max() > 0.01 for other in others)
    generate(PARAMS, INDEX, w=0.0)  # another program, without the second half
    assert set(calls[traced:]) == {4}


def test_a_call_may_override_the_seed_and_the_weight():
    config, parts = run_of()
    plain = make_generate(config, parts)
    config, parts = run_of(seed=5, guidance=2.0)
    generate = make_generate(config, parts)
    np.testing.assert_array_equal(plain(PARAMS, INDEX, seed=5, w=2.0), generate(PARAMS, INDEX))
    np.testing.assert_array_equal(plain(PARAMS, INDEX), generate(PARAMS, INDEX, seed=0, w=0))
    seeds, weights = np.array([5, 1, 5, 1]), np.array([2.0, 2.0, 0.0, 0.5])
    mixed = generate(PARAMS, INDEX, seed=seeds, w=weights)
    for j in range(4):
        one = generate(PARAMS, INDEX, seed=seeds[j], w=weights[j])
        np.testing.assert_allclose(mixed[j], one[j], atol=1e-5)


@pytest.mark.parametrize("seed", [0, 2**31 + 5, 2**32 - 1])
def test_a_sample_is_its_seeds_and_its_numbers(seed):
    config, parts = run_of(seed=seed)
    np.testing.assert_allclose(
        make_generate(config, parts)(PARAMS, INDEX), expected(config, parts, clip_x0(two(parts)[0]), seed), atol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "guided"),
    [
        ({"threshold": 0.9}, lambda c, u: dynamic_threshold(classifier_free(c, u, 1.5), 0.9)),
        ({"guidance_interval": "0.3,3", "clip_x0": False}, lambda c, u: classifier_free(c, u, 1.5, (0.3, 3.0))),
        ({"guidance_rescale": 0.7, "clip_x0": False}, lambda c, u: classifier_free(c, u, 1.5, rescale=0.7)),
    ],
    ids=["threshold", "interval", "rescale"],
)
def test_guidance_leads_away_from_no_label(settings, guided):
    config, parts = run_of(guidance=1.5, **settings)
    images = make_generate(config, parts)(PARAMS, INDEX)
    np.testing.assert_allclose(images, expected(config, parts, guided(*two(parts))), atol=1e-5)
    assert abs(images - expected(config, parts, clip_x0(classifier_free(*two(parts), 1.5)))).max() > 0.01


def test_guidance_leads_away_from_the_weaker_network():
    config, parts = run_of(guidance=1.5, weak="elsewhere", clip_x0=False)
    strong = two(parts)[0]
    guided = autoguidance(strong, strong._replace(params=WEAK), 1.5)
    np.testing.assert_allclose(
        make_generate(config, parts, weak=WEAK)(PARAMS, INDEX), expected(config, parts, guided), atol=1e-5
    )
    with pytest.raises(ValueError, match="give both or neither"):
        make_generate(config, parts)(PARAMS, INDEX)


def test_the_unconditional_branch_is_evaluated_every_other_step():
    calls = []
    config, parts = run_of(calls, guidance=1.5, guidance_every=2)
    images = make_generate(config, parts)(PARAMS, INDEX)
    assert set(calls) == {4, 8}  # apart in the chain, together in the last hop
    conditional, none = two(parts)
    build_whole = lambda other: clip_x0(classifier_free(conditional, other, 1.5))
    whole = cached(parts.sampler, none, build_whole, 2)
    np.testing.assert_allclose(images, expected(config, parts, build_whole(none), sampler=whole), atol=1e-5)
    config, parts = run_of(guidance=1.5)
    assert abs(make_generate(config, parts)(PARAMS, INDEX) - images).max() > 0.01


def test_guidance_without_anything_to_lead_away_from_is_refused():
    config, parts = run_of()
    config.training.label_dropout = 0.0
    with pytest.raises(UserError, match=r"label_dropout above 0, or a weaker one: config\.sampling\.weak"):
        make_generate(config, parts)(PARAMS, INDEX, w=1.0)


def test_the_network_has_one_label_more_where_labels_are_dropped():
    def embedded(**training):
        params = jax.eval_shape(build(tiny_config(**training)).init_params, jax.random.key(0))
        return params["label"]["embedding"].shape[0]

    assert embedded() == 10
    assert embedded(label_dropout=0.1) == 11
