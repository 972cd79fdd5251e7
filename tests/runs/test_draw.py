"""How a run draws: what is compiled once, what guidance is given, and what a seed decides."""

import jax
import numpy as np
import pytest
from one_line import INDEX, PARAMS, WEAK, expected, run_of, two
from tiny import tiny_config

from diffusion_jax import samplers
from diffusion_jax.core.errors import UserError
from diffusion_jax.denoisers import autoguidance, classifier_free, clip_x0, dynamic_threshold
from diffusion_jax.runs.advice import advice
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.draw import classes, labels, make_asked, make_generate
from diffusion_jax.runs.registry import arguments
from diffusion_jax.samplers.cached import cached


def test_seeds_and_weights_compile_nothing_anew():
    calls = []
    config, parts = run_of(calls, guidance=1.0)
    generate = make_generate(config, parts)
    images = generate(PARAMS, INDEX)
    traced = len(calls)
    assert set(calls) == {8}  # both halves in one call
    others = [
        generate(PARAMS, INDEX, w=2.5),
        generate(PARAMS, INDEX, seed=2**32 - 1),
        generate(PARAMS, INDEX + 1),
        generate(PARAMS, INDEX, seed=np.arange(4), w=np.linspace(0, 3, 4)),
    ]
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
    own = expected(config, parts, clip_x0(two(parts)[0]), seed)
    np.testing.assert_allclose(make_generate(config, parts)(PARAMS, INDEX), own, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "guide", "guided"),
    [
        (
            {"threshold": 0.9},
            {},
            lambda c, u: dynamic_threshold(classifier_free(c, u, 1.5), 0.9),
        ),
        (
            {"clip_x0": False},
            {"interval": (0.3, 3.0)},
            lambda c, u: classifier_free(c, u, 1.5, (0.3, 3.0)),
        ),
        (
            {"clip_x0": False},
            {"rescale": 0.7},
            lambda c, u: classifier_free(c, u, 1.5, rescale=0.7),
        ),
    ],
    ids=["threshold", "interval", "rescale"],
)
def test_guidance_leads_away_from_no_label(settings, guide, guided):
    config, parts = run_of(guidance=1.5, guide=use("classifier_free", **guide), **settings)
    images = make_generate(config, parts)(PARAMS, INDEX)
    own = expected(config, parts, guided(*two(parts)))
    np.testing.assert_allclose(images, own, atol=1e-5)
    plain = expected(config, parts, clip_x0(classifier_free(*two(parts), 1.5)))
    assert abs(images - plain).max() > 0.01


def test_guidance_leads_away_from_the_weaker_network():
    weaker = use("autoguidance", weak="elsewhere")
    config, parts = run_of(guidance=1.5, guide=weaker, clip_x0=False)
    strong = two(parts)[0]
    guided = autoguidance(strong, strong._replace(params=WEAK), 1.5)
    images = make_generate(config, parts, weak=WEAK)(PARAMS, INDEX)
    np.testing.assert_allclose(images, expected(config, parts, guided), atol=1e-5)
    with pytest.raises(ValueError, match="give both or neither"):
        make_generate(config, parts)(PARAMS, INDEX)


def test_the_unconditional_branch_is_evaluated_every_other_step():
    calls = []
    config, parts = run_of(calls, guidance=1.5, guide=use("classifier_free", every=2))
    images = make_generate(config, parts)(PARAMS, INDEX)
    assert set(calls) == {4, 8}  # apart in the chain, together in the last hop
    conditional, none = two(parts)

    def whole(other):
        return clip_x0(classifier_free(conditional, other, 1.5))

    sampler = cached(parts.sampler, none, whole, 2)
    own = expected(config, parts, whole(none), sampler=sampler)
    np.testing.assert_allclose(images, own, atol=1e-5)
    config, parts = run_of(guidance=1.5)
    assert abs(make_generate(config, parts)(PARAMS, INDEX) - images).max() > 0.01


def test_guidance_without_anything_to_lead_away_from_is_refused():
    config, parts = run_of()
    config.conditioning.label.dropout = 0.0
    said = r"dropout is above 0, as .*, or a weaker one: .*guide=autoguidance"
    with pytest.raises(UserError, match=said):
        make_generate(config, parts)(PARAMS, INDEX, w=1.0)


def test_the_network_has_one_label_more_where_labels_are_dropped():
    def embedded(dropout):
        config = tiny_config()
        config.conditioning.label.dropout = dropout
        params = jax.eval_shape(build(config).init_params, jax.random.key(0))
        return params["label"]["embedding"].shape[0]

    assert embedded(0.0) == 10
    assert embedded(0.1) == 11


def test_what_a_sample_is_told():
    config, parts = run_of()
    index = np.array([3, 11, 27])
    assert classes(config) == 10
    np.testing.assert_array_equal(labels(config, index), [3, 1, 7])
    config.sampling.label = 4
    np.testing.assert_array_equal(make_asked(config, parts)(index)["label"], [4, 4, 4])
    config.conditioning, config.sampling.label = (), -1
    assert classes(config) == 0
    assert make_asked(config, build(config))(index) == {}


GIVEN = [
    name
    for name, factory in samplers.SAMPLERS.items()
    if any(one.setting is None or one.setting.own for one in arguments(factory))
]


@pytest.mark.parametrize("name", ["ddim", *GIVEN])
def test_every_sampler_that_the_run_gives_something_draws_for_it(name):
    coarse = {"rtol": 0.1, "atol": 0.1} if name == "adaptive_ode" else {}
    config, parts = run_of(sampler=use(name, **coarse), grid="trailing", steps="3")
    images = make_generate(config, parts)(PARAMS, INDEX)
    assert images.shape == (4, 8, 8, 1)
    assert np.all(np.isfinite(images))


def edm(sampler, grid, steps):
    """The config and the parts of a run by EDM's schedule."""
    config = tiny_config()
    config.diffusion.schedule, config.diffusion.prediction = "edm", "edm"
    config.diffusion.timesteps = "lognormal"
    sampling = config.sampling
    sampling.sampler, sampling.grid, sampling.steps = sampler, grid, steps
    return config, build(config)


def test_a_first_step_too_long_for_the_sampler_is_said():
    long = {"sampler": "heun", "grid": "uniform", "steps": "5"}
    config, parts = run_of(**long)
    said = advice(config, parts.grid)
    assert "heun_flow" in said and "in its first step" in said
    for quiet in ({"sampler": "heun_flow"}, {"grid": "karras", "steps": "20"}, {"steps": "1"}):
        config, parts = run_of(**long | quiet)
        assert advice(config, parts.grid) == ""


def test_a_last_step_too_long_for_the_sampler_is_said():
    """Of sigma evenly spread from 80 to 0.002 the last step goes from 4.2 to 0.002."""
    config, parts = edm("heun", "uniform", "20")
    ratio = np.asarray(parts.grid.sigma / parts.grid.alpha, float)
    said = advice(config, parts.grid)
    assert f"from sigma/alpha = {ratio[-2]:.3g} to {ratio[-1]:.3g} in its last step" in said
    assert ratio[-2] == pytest.approx(80 / 19, rel=0.01) and ratio[-1] == pytest.approx(0.002)
    assert ratio[0] / ratio[1] < 1.1  # the first step is no trouble
    assert "karras" in said and "\n" not in said
    for sampler, grid in (("heun", "karras"), ("heun_flow", "uniform")):
        config, parts = edm(sampler, grid, "20")
        assert advice(config, parts.grid) == ""
