"""Averages by powers of time: their profiles, what is made of stored ones, and in a run."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from diffusion_jax.commands import train
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.build import build
from diffusion_jax.runs.open import restore_params
from diffusion_jax.training import snapshots
from diffusion_jax.training.power_ema import coefficients, exponent, inner_products, share

LENGTHS = (0.05, 0.1)


def profile(s, t, g):
    return np.where(s <= t, (g + 1) * s**g / t ** (g + 1), 0.0)


def integral(values, nodes):
    return np.sum((values[1:] + values[:-1]) / 2 * np.diff(nodes))


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_an_exponents_profile_has_its_length(length):
    s, g = np.linspace(0, 1, 200_001), exponent(length)
    p = profile(s, 1.0, g)
    mean = integral(p * s, s)
    assert integral(p, s) == pytest.approx(1.0, rel=1e-6)
    assert np.sqrt(integral(p * (s - mean) ** 2, s)) == pytest.approx(length, rel=1e-5)


def test_the_papers_exponents():
    """Section 3.1: 16.97 and 6.94 for 0.05 and 0.10."""
    assert [round(exponent(length), 2) for length in LENGTHS] == [16.97, 6.94]


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3])
def test_lengths_that_no_average_has(length):
    with pytest.raises(ValueError, match="length must be"):
        exponent(length)


def test_inner_products_are_the_integrals():
    t, g, s, h = [100.0, 250.0], [16.97, 6.94], [100.0, 180.0, 400.0], [6.94, 0.5, 40.0]
    x = np.linspace(0, 400, 400_001)
    expected = [
        [integral(profile(x, a, b) * profile(x, c, d), x) for c, d in zip(s, h, strict=True)]
        for a, b in zip(t, g, strict=True)
    ]
    np.testing.assert_allclose(inner_products(t, g, s, h), expected, rtol=1e-3)
    assert np.all(np.isfinite(inner_products([1e7], [4000.0], [1.0, 2e7], [4000.0, 9000.0])))


def test_the_running_average_is_the_profiles():
    """The share of each step in the end, by the recursion, against the integral over that step."""
    steps, g = 400, exponent(0.1)
    of_each = np.zeros(steps)
    for step in range(1, steps + 1):
        taken = float(share(g, step))
        of_each *= 1 - taken
        of_each[step - 1] += taken
    edges = np.arange(steps + 1) / steps
    np.testing.assert_allclose(of_each, np.diff(edges ** (g + 1)), atol=1e-6)
    assert float(share(g, 2**24)) == pytest.approx((g + 1) / 2**24, rel=1e-4)


def tracked(walk, length):
    """The average of a length after each step of a walk [T, ...], in float64 by the profile's own
    shares."""
    g, average, found = exponent(length), 0.0, []
    for step, value in enumerate(walk, start=1):
        average = average + (1 - (1 - 1 / step) ** (g + 1)) * (value - average)
        found.append(average)
    return np.stack(found)


@pytest.fixture(scope="module")
def walk():
    """A random walk of 4,000 steps in 300 dimensions, and the snapshots of every 125th."""
    walk = np.cumsum(np.random.default_rng(0).standard_normal((4000, 300)), axis=0)
    at = np.arange(125, 4001, 125)
    stored = np.concatenate([tracked(walk, length)[at - 1] for length in LENGTHS])
    return walk, np.tile(at, 2), np.repeat([exponent(n) for n in LENGTHS], len(at)), stored


def error(found, walk, expected):
    """Root mean square, over that of the walk's end from the average."""
    return np.linalg.norm(found - expected) / np.linalg.norm(walk[-1] - expected)


@pytest.mark.parametrize("length", [0.02, 0.03, 0.07, 0.15, 0.2])
def test_an_average_of_another_length_is_made_of_the_snapshots(walk, length):
    walk, steps, exponents, stored = walk
    factors = coefficients(steps, exponents, 4000, exponent(length))
    assert error(factors @ stored, walk, tracked(walk, length)[-1]) < 0.03
    assert factors.sum() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_stored_average_is_made_again(walk, length):
    walk, steps, exponents, stored = walk
    factors = coefficients(steps, exponents, 4000, exponent(length))
    assert error(factors @ stored, walk, tracked(walk, length)[-1]) < 1e-3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, workdir, workdir of the same run killed after its last snapshot, before its last
    checkpoint, and gone on with from step 4)."""
    folder = tmp_path_factory.mktemp("averages")
    config = tiny.mlp_config(post_hoc_ema=LENGTHS, snapshot_every=2, eval_every=0)
    with tiny.without_pictures():
        train.train(config, folder / "whole")
        shutil.copytree(folder / "whole", folder / "resumed")
        shutil.rmtree(folder / "resumed/checkpoints/8")
        shutil.copy(names(folder / "resumed")[0], names(folder / "resumed")[-1])
        train.train(config, folder / "resumed")
    return config, folder / "whole", folder / "resumed"


def names(workdir):
    return sorted((workdir / "averages").iterdir())


def test_a_resumed_run_has_the_same_averages_bit_for_bit(run):
    config, workdir, resumed = run
    tiny.assert_same_run((config, workdir), resumed)
    assert [path.name for path in names(workdir)] == [
        f"{step:08d}-{length:g}.safetensors" for step in (2, 4, 6, 8) for length in LENGTHS
    ]
    for path, other in zip(names(workdir), names(resumed), strict=True):
        assert path.read_bytes() == other.read_bytes()


def test_a_runs_averages_are_those_of_its_state_and_make_them_again(run):
    config, workdir, _ = run
    state, _ = tiny.final_state(config, workdir)
    assert len(state.averages) == 2
    for length, expected in zip(LENGTHS, state.averages, strict=True):
        params, step = snapshots.reconstruct(workdir / "averages", length, until=9)
        assert step == 8 and jax.tree.structure(params) == jax.tree.structure(expected)
        assert distance(params, expected) < 1e-3 * distance(state.params, expected)
    short, long = (distance(state.params, average) for average in state.averages)
    assert 0 < short < long
    assert snapshots.reconstruct(workdir / "averages", 0.1, until=7)[1] == 6


def distance(a, b):
    squares = jax.tree.map(lambda x, y: np.sum(np.square(np.asarray(x) - np.asarray(y))), a, b)
    return float(np.sqrt(sum(jax.tree.leaves(squares))))


def test_commands_take_the_average_of_ema_length(run, tmp_path):
    config, workdir, _ = run
    config.sampling.ema_length = 0.07
    params, step = restore_params(config, build(config), workdir, ema=True)
    expected, _ = snapshots.reconstruct(workdir / "averages", 0.07, step)
    assert distance(params, expected) == 0.0 and step == 8
    raw, _ = restore_params(config, build(config), workdir, ema=False)
    assert distance(raw, expected) > 0
    config.sampling.ema_length = 0.0
    tiny.evaluate_run(workdir, ema_lengths="0.06,0.15")
    found = json.loads((workdir / "evaluations/lengths-40.json").read_text())
    assert set(found) == {"0.06", "0.15"} and found["0.06"]["fid"] != found["0.15"]["fid"]
    with pytest.raises(UserError, match="holds no averages up to step 1"):
        snapshots.reconstruct(workdir / "averages", 0.1, until=1)


def test_snapshots_in_half_precision(tmp_path):
    average = {"a": {"kernel": np.linspace(-1, 1, 10, dtype=np.float32)}, "gain": np.float32(2.0)}
    snapshots.write(tmp_path / "averages", 5, (average,), (0.1,), "float16")
    found, _ = snapshots.reconstruct(tmp_path / "averages", 0.1, until=5)
    np.testing.assert_allclose(found["a"]["kernel"], average["a"]["kernel"], atol=1e-3)
    assert found["gain"].shape == () and found["gain"] == 2.0
    assert np.abs(found["a"]["kernel"] - average["a"]["kernel"]).max() > 1e-6


@pytest.mark.parametrize(
    ("lengths", "message"),
    [((0.1, 0.1), "post_hoc_ema has a length twice"), ((0.4,), "length must be at most 0.288")],
)
def test_lengths_are_refused_before_a_run_begins(lengths, message):
    with pytest.raises(UserError, match=message):
        build(tiny.mlp_config(post_hoc_ema=lengths))
