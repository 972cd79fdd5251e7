"""From a config to the functions of a run: what they are given, and what does not go together."""

import types

import jax
import numpy as np
import pytest
from one_line import run_of
from tiny import ROOT, mlp_config, tiny_config

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Level, Prediction
from diffusion_jax.runs.build import batch_spec, build, held_out_times, make_grid, table_betas
from diffusion_jax.runs.checks import check_attention
from diffusion_jax.runs.config import use
from diffusion_jax.runs.settings import check, load


def test_samplers_get_their_settings_and_the_schedule():
    churned = use("edm_churn", churn=2.0)
    _, parts = run_of(sampler=churned, grid="karras", steps="10")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    level = lambda i: Level(*(a[i] for a in parts.grid))
    seen = []

    def denoiser(x, level):
        seen.append(level)
        return Prediction(0 * x, x)

    parts.sampler.step(jax.random.split(jax.random.key(0), 2), denoiser, x, (), level(5), level(6))
    ratio = lambda level: float(level.sigma / level.alpha)
    # S_churn / N, on the schedule, t included
    np.testing.assert_allclose(ratio(seen[0]) / ratio(level(5)), 1 + 2.0 / 10, rtol=1e-3)
    np.testing.assert_allclose(parts.schedule.level(seen[0].t), seen[0], rtol=1e-5)


def test_the_ancestral_sampler_has_the_models_variance_unless_told_another():
    config = mlp_config()
    assert "fixed_small" in repr(build(config).sampler)
    config.diffusion.variance = "fixed_large"
    assert "fixed_large" in repr(build(config).sampler)
    config.sampling.sampler.variance = "fixed_small"
    assert "fixed_small" in repr(build(config).sampler)
    config.sampling.sampler = "ancestral"
    config.model.learned_variance, config.diffusion.loss = True, "hybrid"
    assert "learned_range" in repr(build(config).sampler)


def test_grids_are_quantized_and_counted_as_told():
    for name in ("karras", "logsnr", "quadratic"):
        free, whole = (
            run_of(grid=name, steps="6", quantize=quantize)[1].grid.t for quantize in (False, True)
        )
        assert np.any(free != np.round(free))
        assert np.issubdtype(whole.dtype, np.integer)
        np.testing.assert_array_equal(whole, np.unique(np.round(free))[::-1])
    coarse, fine = (
        run_of(grid=use("karras", rho=rho), steps="5")[1].grid.sigma[2] for rho in (1.0, 7.0)
    )
    assert fine < coarse
    config, parts = run_of(grid="karras", steps="5")
    assert len(make_grid(config, parts.schedule, "9").t) == 9


def test_equal_configs_have_equal_parts():
    mine, theirs = build(mlp_config()), build(mlp_config())
    assert mine.schedule is theirs.schedule and mine.sampler is theirs.sampler
    assert mine.apply_fn == theirs.apply_fn and hash(mine.apply_fn) == hash(theirs.apply_fn)
    assert "num_steps=20" in repr(mine.schedule)


def test_the_betas_of_a_table_are_those_of_its_settings():
    config = mlp_config()
    config.diffusion.schedule = use("linear", num_steps=50, beta_end=0.01)
    betas = table_betas(config)
    assert betas is not None and betas.dtype == np.float64
    np.testing.assert_allclose(betas, np.linspace(0.0001 * 20, 0.01 * 20, 50))
    config.diffusion.schedule = "vp"
    assert table_betas(config) is None


def test_the_held_out_loss_is_over_uniform_t_unless_the_objective_says_otherwise():
    config = mlp_config()
    assert repr(held_out_times(config, build(config))).startswith("uniform(")
    config.diffusion.timesteps = use("logit_normal", mean=0.5)
    parts = build(config)
    assert held_out_times(config, parts) is parts.problem.timesteps


def test_a_batch_is_known_without_reading_data():
    config = mlp_config()
    parts = build(config)
    config.data.source = use("folder", folder="nowhere")
    spec = batch_spec(config, parts, 16)
    assert {name: (a.shape, str(a.dtype)) for name, a in spec.items()} == {
        "image": ((16, 8, 8, 1), "uint8"),
        "label": ((16,), "int32"),
    }


def test_every_kept_step_must_be_one_that_is_saved():
    with pytest.raises(UserError, match="keep_every=6 must be a multiple of checkpoint_every=4"):
        build(mlp_config(keep_every=6))
    with pytest.raises(UserError, match="keep_every must be at least 0"):
        build(mlp_config(keep_every=-4))


def test_every_experiment_builds():
    """A block a level, or two layers, stand for as many as its own network has."""
    for path in sorted((ROOT / "experiments").glob("*.py")):
        config = load(path)
        check(config)
        for name, count in {"blocks": 1, "depth": 2}.items():
            if name in config.model.values():
                setattr(config.model, name, count)
        build(config)


@pytest.mark.parametrize(
    ("capability", "refused"), [("7.5", True), ("8.0", False), ("gfx90a", False), (None, False)]
)
def test_attention_in_bfloat16_needs_a_gpu_that_runs_it(monkeypatch, capability, refused):
    """7.5 is a T4's, 8.0 an A100's; AMD's are no numbers, and a CPU has none."""
    device = types.SimpleNamespace(device_kind="a card", compute_capability=capability)
    monkeypatch.setattr("jax.local_devices", lambda: [device])
    config = tiny_config()
    check_attention(config)
    config.model.dtype = "bfloat16"
    if refused:
        with pytest.raises(UserError, match="a card is too old .*model.attention=plain"):
            check_attention(config)
    else:
        check_attention(config)
    config.model.attention = "plain"
    check_attention(config, on_mesh=True)
    config.model.attention = "pallas"
    check_attention(config)
    with pytest.raises(UserError, match="attention=pallas is for one process"):
        check_attention(config, on_mesh=True)
