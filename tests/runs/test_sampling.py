"""How a run draws: what is compiled once, what guidance is given, and what a seed decides."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from diffusion_jax import samplers
from diffusion_jax.commands import nll
from diffusion_jax.commands import sample as generate
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.data.sources import digits
from diffusion_jax.denoisers import (
    autoguidance,
    classifier_free,
    clip_x0,
    dynamic_threshold,
    make_denoiser,
)
from diffusion_jax.runs.build import build
from diffusion_jax.runs.draw import advice, make_generate
from diffusion_jax.runs.settings import to_json
from diffusion_jax.samplers.cached import cached

INDEX = np.arange(3, 7)
PARAMS, WEAK = {"a": np.float32(0.9)}, {"a": np.float32(0.5)}


def run_of(calls=None, **sampling):
    """(config, parts) of a run trained with label dropout, its network replaced by one line that
    notes its batches."""

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
    """The denoisers with the labels of the samples number INDEX, and with none, which is the
    eleventh."""
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


# Samplers and grids by name


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_every_sampler_draws_for_a_run(name):
    config, parts = run_of(sampler=name, grid="trailing", steps="3", ode_tolerance=0.1)
    images = make_generate(config, parts)(PARAMS, INDEX)
    assert images.shape == (4, 8, 8, 1)
    assert np.all(np.isfinite(images))


def test_samplers_get_their_settings_and_the_schedule():
    config, parts = run_of(sampler="edm_churn", grid="karras", steps="10", churn=2.0)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    level = lambda i: Level(*(a[i] for a in parts.grid))
    seen = []

    def denoiser(x, level):
        seen.append(level)
        return Prediction(0 * x, x)

    parts.sampler.step(jax.random.split(jax.random.key(0), 2), denoiser, x, (), level(5), level(6))
    ratio = lambda level: float(level.sigma / level.alpha)
    np.testing.assert_allclose(ratio(seen[0]) / ratio(level(5)), 1 + 2.0 / 10, rtol=1e-3)  # S_churn / N
    np.testing.assert_allclose(parts.schedule.level(seen[0].t), seen[0], rtol=1e-5)  # on the schedule, t included


def test_grids_are_quantized_and_counted_as_told():
    for name in ("karras", "logsnr", "quadratic"):
        free, whole = (run_of(grid=name, steps="6", quantize=quantize)[1].grid.t for quantize in (False, True))
        assert np.any(free != np.round(free))
        assert np.issubdtype(whole.dtype, np.integer)
        np.testing.assert_array_equal(whole, np.unique(np.round(free))[::-1])
    coarse, fine = (run_of(grid="karras", steps="5", rho=rho)[1].grid.sigma[2] for rho in (1.0, 7.0))
    assert fine < coarse


def test_a_first_step_too_long_for_the_sampler_is_said():
    config, parts = run_of(sampler="heun", grid="uniform", steps="5")
    assert "heun_flow" in advice(config, parts.grid)
    for quiet in ({"sampler": "heun_flow"}, {"grid": "karras", "steps": "20"}, {"steps": "1"}):
        config, parts = run_of(**({"sampler": "heun", "grid": "uniform", "steps": "5"} | quiet))
        assert advice(config, parts.grid) == ""


def test_a_tolerance_chooses_the_number_of_steps(capsys):
    config, parts = run_of(sampler="dpmpp_2m", grid="logsnr", tolerance=0.05, steps="7")
    config.diffusion.num_steps = 200
    of_network = lambda: build(config)._replace(apply_fn=parts.apply_fn)
    settled_parts = generate.settled(config, of_network(), PARAMS, None)
    chosen = int(config.sampling.steps)
    assert len(settled_parts.grid.t) == chosen
    assert f"{chosen} steps" in capsys.readouterr().out
    images = []
    for num_steps in (chosen, 2 * chosen, chosen // 2):
        config.sampling.steps = str(num_steps)
        images.append(make_generate(config, of_network())(PARAMS, np.arange(20)))
    assert np.sqrt(np.mean((images[0] - images[1]) ** 2)) <= 0.05
    assert chosen == 5 or np.sqrt(np.mean((images[0] - images[2]) ** 2)) > 0.05
    config.sampling.tolerance = 1e-9
    with pytest.raises(UserError, match="cannot be kept"):
        generate.settled(config, of_network(), PARAMS, None)


# Bits/dim by the ODE


@pytest.mark.parametrize("probes", [0, 2])
def test_bits_by_the_ode_are_those_of_the_density(monkeypatch, tmp_path, probes):
    """A network that is exact for N(mean, std^2) pixels: its density is known."""
    mean, std = -0.4, 0.7
    config, parts = run_of()
    config.diffusion.prediction = "x0"
    config.likelihood.method, config.likelihood.examples, config.likelihood.probes = "ode", 12, probes

    def exact(params, x, t, cond=None, dropout_key=None):
        level = parts.schedule.level(t.astype(jnp.float32)).expand(4)
        return mean + level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2) * (x - level.alpha * mean)

    monkeypatch.setattr(nll, "build", lambda config: build(config)._replace(apply_fn=exact))
    monkeypatch.setattr(nll, "restore_params", lambda *_: (PARAMS, 8))
    (tmp_path / "config.json").write_text(to_json(config))
    path = nll.nll(config, tmp_path)
    report = json.loads(path.read_text())
    x0 = digits("test").images[:12].reshape(12, 64) / 127.5 - 1
    clean = parts.schedule.level(0)
    variance = std**2 + float(clean.sigma / clean.alpha) ** 2
    expected = lambda x: 0.5 * ((x - mean) ** 2 / variance + np.log(2 * np.pi * variance)) / np.log(2) + np.log2(255 / 2)
    # the noise of dequantization moves the mean square by its variance, (2/255)^2 / 12, and by
    # chance
    np.testing.assert_allclose(report["bits_per_dim"], expected(x0).mean(), atol=3e-3)
    assert report["method"] == "ode"
    assert report["probes"] == probes
    assert report["examples"] == 12
