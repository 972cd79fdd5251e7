"""The command `nll`: reports of the bound and of the ODE."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import main_run, mlp_config, pixels

from diffusion_jax.commands import nll
from diffusion_jax.data.sources import digits
from diffusion_jax.runs.build import build
from diffusion_jax.runs.settings import to_json


def settings(**likelihood):
    return [f"--config.likelihood.{name}={value}" for name, value in likelihood.items()]


def test_the_bound_term_by_term_with_a_plot_and_the_best_steps(improved, capsys):
    main_run("nll", "--workdir", improved, *settings(examples=24, budget=5))
    path = improved / "nll" / "step4-test-20-examples24.json"
    report = json.loads(path.read_text())
    bits = f"{report['bits_per_dim']:.3f} bits/dim +- {report['standard_error']:.3f}"
    assert capsys.readouterr().out == f"{bits}\n{path}\n"
    assert report["examples"] == 24
    assert report["variance"] == "learned_range"
    assert len(report["terms"]) == len(report["x0_mse"]) == len(report["eps_mse"]) == 20
    assert report["bits_per_dim"] == pytest.approx(report["prior"] + sum(report["terms"]), rel=1e-5)
    assert report["standard_error"] > 0
    assert pixels(path.with_suffix(".png")).shape[1] > 300
    steps = [int(t) for t in report["best_steps"].split(",")]
    assert len(steps) == 5
    assert (steps[0], steps[-1]) == (0, 19)
    best = f"--config.sampling.steps={report['best_steps']}"
    few = "--config.sampling.num=2"
    main_run("sample", "--workdir", improved, "--config.sampling.grid=explicit", best, few)

    main_run("nll", "--workdir", improved, *settings(examples=24, monte_carlo=40))
    name = "step4-test-20-examples24-monte-carlo40.json"
    estimate = json.loads((improved / "nll" / name).read_text())
    error = np.hypot(estimate["standard_error"], report["standard_error"])
    assert abs(estimate["bits_per_dim"] - report["bits_per_dim"]) < 4 * error


def test_one_example_has_no_standard_error(improved):
    main_run("nll", "--workdir", improved, *settings(examples=1, steps=2))
    report = json.loads((improved / "nll" / "step4-test-2-examples1.json").read_text())
    assert report["standard_error"] is None


@pytest.mark.parametrize("probes", [0, 2])
def test_bits_by_the_ode_are_those_of_the_density(monkeypatch, tmp_path, probes):
    """A network that is exact for N(mean, std^2) pixels: its density is known."""
    mean, std = -0.4, 0.7
    config = mlp_config()
    config.diffusion.prediction = "x0"
    likelihood = config.likelihood
    likelihood.method, likelihood.examples, likelihood.probes = "ode", 12, probes
    schedule = build(config).schedule

    def exact(params, x, t, cond=None, dropout_key=None):
        level = schedule.level(t.astype(jnp.float32)).expand(4)
        gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
        return mean + gain * (x - level.alpha * mean)

    monkeypatch.setattr(nll, "build", lambda config: build(config)._replace(apply_fn=exact))
    monkeypatch.setattr(nll, "restore_params", lambda *_: ({"a": np.float32(0.9)}, 8))
    (tmp_path / "config.json").write_text(to_json(config))
    report = json.loads(nll.nll(config, tmp_path).read_text())
    x0 = digits("test").images[:12].reshape(12, 64) / 127.5 - 1
    clean = schedule.level(0)
    variance = std**2 + float(clean.sigma / clean.alpha) ** 2
    nats = 0.5 * ((x0 - mean) ** 2 / variance + np.log(2 * np.pi * variance))
    # the noise of dequantization moves the mean square by its variance, (2/255)^2 / 12, and by
    # chance
    expected = nats.mean() / np.log(2) + np.log2(255 / 2)
    np.testing.assert_allclose(report["bits_per_dim"], expected, atol=3e-3)
    assert report["method"] == "ode"
    assert report["probes"] == probes
    assert report["examples"] == 12
