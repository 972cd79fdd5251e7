"""The sampler of flow maps, and what their denoisers are told, held to Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import FLOW, average_velocity, exact, mapped, problem, right, second_of

from diffusion_jax import samplers
from diffusion_jax.conditioning import told_in_sampling
from diffusion_jax.core import grids, predictions, schedules
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.second_time import features, told
from diffusion_jax.core.types import CLEAN, Level
from diffusion_jax.denoisers import (
    autoguidance,
    classifier_free,
    clip_x0,
    dynamic_threshold,
    going_to,
    make_denoiser,
)

X = np.random.default_rng(0).normal(size=(3, 1))
PARAMS = jax.tree.map(lambda a: a[:1], right(1))
COND = problem().conditioner.example(3)


def flow_of(**changed):
    return make_denoiser(exact, PARAMS | changed, predictions.flow(), COND)


def noise_to_data(x, mean=0.7, std=0.5):
    return mean + std * x


def test_a_level_is_told_by_its_angle_whatever_the_schedule(x64):
    t = np.array([0.0, 0.25, 0.6, 1.0])
    level = FLOW.level(t)
    angle = np.arctan2(t, 1 - t) * 2
    expected = [np.cos(k * angle) for k in range(1, 9)] + [np.sin(k * angle) for k in range(1, 9)]
    np.testing.assert_allclose(features(level), np.transpose(expected), atol=1e-12)
    np.testing.assert_allclose(second_of({"second_time": features(level)}), t, atol=1e-12)
    scaled = Level(level.t, 3 * level.alpha, 3 * level.sigma)
    np.testing.assert_allclose(features(scaled), features(level), atol=1e-12)
    for cond in (None, np.zeros(4), {"label": np.zeros(4)}):
        assert told(cond, level) is cond


def test_a_perfect_map_takes_noise_to_data_in_any_number_of_steps(x64):
    draw = jax.jit(lambda grid: samplers.sample(samplers.flow_map(), flow_of(), None, X, grid))
    for steps in (1, 2, 5):
        found = draw(grids.trailing(FLOW, steps))
        np.testing.assert_allclose(found, noise_to_data(X), atol=1e-5)  # alpha is 1e-6 at t = 1
    # every x on the way is on the path, and x0 is where it ends
    grid = grids.trailing(FLOW, 3)
    found, path = samplers.sample(samplers.flow_map(), flow_of(), None, X, grid, trajectory=True)
    for i, t in enumerate((1.0, 2 / 3, 1 / 3)):
        ends = (FLOW.t_min + t * (1 - FLOW.t_min), 1.0)
        expected = mapped(X, np.array(1.0), np.array(ends[0]), 0.7, 0.5)
        np.testing.assert_allclose(path.x[i], expected, atol=1e-5)
        np.testing.assert_allclose(path.x0[i], noise_to_data(X), atol=1e-5)
    *_, (taken, _, x0) = samplers.progressive(samplers.flow_map(), flow_of(), None, X, grid)
    assert taken == 2
    np.testing.assert_allclose(x0, found, atol=1e-12)


def test_any_other_sampler_meets_an_ordinary_denoiser(x64):
    """Told its own level, the network says the velocity: Heun's method follows the flow to its
    data, which a network told clean data does not."""
    grid = grids.uniform(FLOW, 200)
    draw = jax.jit(lambda d: samplers.sample(samplers.heun_flow(), d, None, X, grid))
    np.testing.assert_allclose(draw(flow_of()), noise_to_data(X), atol=2e-3)
    bent = draw(going_to(flow_of(), CLEAN))
    assert np.abs(bent - noise_to_data(X)).max() > 0.05
    level = FLOW.level(np.array([0.9, 0.5, 0.2]))
    found = jax.jit(lambda d: d(X, level))(flow_of())
    v = average_velocity(X, level.t, level.t, 0.7, 0.5)
    np.testing.assert_allclose(found.eps - found.x0, v, rtol=1e-9)


WRAPPED = {
    "network": lambda d: d,
    "guided": lambda d: classifier_free(d, d._replace(cond={**COND}), 2.0),
    "autoguided": lambda d: autoguidance(d, flow_of(a=np.ones((1, 1))), 2.0, (0.0, 1e9)),
    "clipped": lambda d: clip_x0(classifier_free(d, d, 1.0), -9.0, 9.0),
    "threshold": dynamic_threshold,  # left off
}


@pytest.mark.parametrize("name", WRAPPED)
def test_every_network_in_a_denoiser_is_told_where_it_goes(x64, name):
    """Guidance of a network away from itself is the network."""
    level, to = FLOW.level(np.array([0.9, 0.5, 0.2])), FLOW.level(np.array([0.4, 0.5, 0.0]))
    u = average_velocity(X, level.t, to.t, 0.7, 0.5)
    going = lambda d: going_to(d, to, limits=name != "threshold")
    found = jax.jit(lambda d: going(d)(X, level))(WRAPPED[name](flow_of()))
    np.testing.assert_allclose(found.eps - found.x0, u, rtol=1e-8)


def test_limits_act_in_the_last_hop_alone(x64):
    """Between noisy levels x0 is no image: clipped to 0, it would bend the way."""
    grid = grids.trailing(FLOW, 2)
    narrow = clip_x0(flow_of(), -0.1, 0.1)
    draw = lambda d: samplers.sample(samplers.flow_map(), d, None, X, grid, trajectory=True)
    found, path = draw(narrow)
    np.testing.assert_allclose(path.x[1], draw(flow_of())[1].x[1], atol=1e-12)
    np.testing.assert_allclose(found, np.clip(noise_to_data(X), -0.1, 0.1), atol=1e-5)


def test_branches_that_go_to_one_level_are_one_call():
    calls = []

    def network(params, x, t, cond):
        calls.append(x.shape[0])
        return exact(params, x, t, cond)

    one = make_denoiser(network, PARAMS, predictions.flow(), COND)
    guided = classifier_free(one, one._replace(cond={**COND}), 1.0)
    to = FLOW.level(np.array([0.4, 0.3, 0.0]))
    both = jax.jit(lambda d, to: going_to(d, to)(X, FLOW.level(0.9)))(guided, to)
    assert calls == [6]
    alone = going_to(one, to)(X, FLOW.level(0.9))
    np.testing.assert_allclose(both.x0, alone.x0, rtol=1e-4)


def test_what_goes_one_way_alone_is_refused():
    with pytest.raises(ValueError, match="invert by ddim"):
        samplers.invert(flow_of(), X, grids.trailing(FLOW, 2), samplers.flow_map())
    with pytest.raises(ValueError, match="set every to 1"):
        samplers.cached(samplers.flow_map(), flow_of(), lambda d: d, 2)


def test_without_a_second_time_it_is_ddim():
    network = lambda params, x, t, cond: jnp.tanh(x) * t[:, None]
    plain = make_denoiser(network, None, predictions.v())
    grid = grids.uniform(schedules.cosine(100), 4)
    draw = lambda s: samplers.sample(s, plain, None, X, grid)
    np.testing.assert_allclose(draw(samplers.flow_map()), draw(samplers.ddim()), rtol=1e-5)


def test_the_conditioner_tells_clean_data_until_it_knows_better():
    conditioner, keys = problem().conditioner, example_keys(jax.random.key(0), np.arange(4))
    clean = np.concatenate([np.ones(8), np.zeros(8)])
    batch = {"image": np.zeros((4, 1))}
    for cond in (
        conditioner.train(keys, batch)[1],
        told_in_sampling(conditioner, keys, {}),
        told_in_sampling(conditioner, None, batch),
        conditioner.example(4),
    ):
        np.testing.assert_allclose(cond["second_time"], np.tile(clean, (4, 1)), atol=1e-6)
