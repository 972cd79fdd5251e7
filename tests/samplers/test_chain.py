"""The loops over a chain: `sample`, `progressive`, `invert`, the choice of the number of steps, and
the keys of the noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import KEY, SHAPE, gaussian, run, wavy

from diffusion_jax import samplers
from diffusion_jax.core import schedules
from diffusion_jax.core.grids import logsnr, uniform
from diffusion_jax.core.noise import example_keys, initial_noise, normal
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.types import Level, Sampler
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.samplers import ancestral, ddim, invert, num_steps_for, progressive, sample

# `sample`


def test_a_trajectory_goes_from_x_init_to_the_result(injected):
    grid = uniform(schedules.linear(100), 5)
    noise = np.random.default_rng(0).normal(size=(4, 3, *SHAPE)).astype(np.float32)
    x_init = noise[0] + 1
    chain = lambda x, **options: sample(
        injected(ancestral(), noise), wavy, None, x, grid, **options
    )
    plain = jax.jit(chain)(x_init)
    x0, path = chain(x_init, trajectory=True)
    assert path.x.shape == (6, *x_init.shape)
    np.testing.assert_array_equal(path.x[0], x_init)
    np.testing.assert_array_equal(path.x[-1], x0)
    np.testing.assert_allclose(x0, plain, rtol=1e-5, atol=1e-6)  # so the chain's jit is eager, too
    np.testing.assert_allclose(
        path.x0,
        np.tanh(path.x[:-1] + np.cos(0.1 * grid.t).reshape(5, 1, 1, 1, 1)),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(path.x0[-1], x0)


def _network_calls(**options):
    """How often the compiled chain of 5 levels evaluates a network that holds one matrix
    product."""
    matrix = jnp.ones((4, 4))
    denoiser = make_denoiser(
        lambda params, x, t, cond: jnp.tanh(x @ matrix), None, PREDICTIONS["x0"]()
    )
    grid = uniform(schedules.linear(100), 5)
    chain = jax.jit(lambda x: sample(ddim(), denoiser, None, x, grid, **options))
    return chain.lower(jnp.ones((1, 4))).compile().as_text().count(" tanh(")


def test_a_trajectory_costs_no_further_call():
    assert _network_calls(trajectory=True) == _network_calls() == 2  # in the loop, and after it


def test_steps_meet_neighbouring_levels_in_order_and_carry_their_state():
    grid = uniform(schedules.linear(100), 4)

    def step(keys, denoiser, x, state, t, s):
        count, expected_t = state
        return x.at[:, count].set(jnp.stack([t.t, s.t, expected_t]).astype(x.dtype)), (
            count + 1,
            s.t,
        )

    recorder = Sampler(lambda x, level: (0, level.t), step)
    _, path = sample(recorder, wavy, None, jnp.zeros((1, 3, 3)), grid, trajectory=True)
    np.testing.assert_array_equal(path.x[-2][0], [[99, 66, 99], [66, 33, 66], [33, 0, 33]])


def test_every_step_and_example_draws_its_own_noise():
    step = lambda keys, denoiser, x, state, t, s: (normal(keys, x.shape[1:]), state)
    noise = Sampler(lambda x, level: (), step)
    _, path = run(noise, wavy, uniform(schedules.linear(100), 5), trajectory=True)
    assert len(np.unique(path.x[1:-1])) == 4 * 3 * 4


# `progressive`


@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_progressive_is_sample_with_its_stations(every):
    grid = uniform(schedules.linear(100), 6)
    keys = jax.random.split(KEY, 3)
    x_init = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    x0, path = sample(samplers.dpmpp_2m(), wavy, keys, x_init, grid, trajectory=True)
    stations = list(progressive(samplers.dpmpp_2m(), wavy, keys, x_init, grid, every))
    taken = [taken for taken, _, _ in stations]
    assert taken == [*range(every, 5, every), 5]
    for number, x, clean in stations:
        np.testing.assert_allclose(x, path.x[number], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(clean, path.x0[number], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stations[-1][2], x0, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="at least 1"):
        next(progressive(ddim(), wavy, keys, x_init, grid, 0))


# `invert`


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("heun_flow", 2)])
def test_inversion_and_sampling_come_back_at_the_samplers_order(x64, continuous, name, order):
    sampler = samplers.SAMPLERS[name]()
    mean, std = 0.3, 0.5
    last, first = continuous.level(continuous.t_min), continuous.level(continuous.t_max)
    x = np.array([[-0.9], [0.1], [1.2]])
    deviation = lambda level: np.sqrt(level.alpha**2 * std**2 + level.sigma**2)
    # along the flow (x - alpha mean) / its deviation stays what it is
    expected = first.alpha * mean + deviation(first) / deviation(last) * (x - last.alpha * mean)
    errors, returns = [], []
    for num_steps in (64, 128):
        grid = logsnr(continuous, num_steps + 1)
        noise = jax.jit(lambda x, grid=grid: invert(gaussian(mean, std), x, grid, sampler))(x)
        errors.append(np.abs(noise - expected).max())
        _, path = sample(sampler, gaussian(mean, std), None, noise, grid, trajectory=True)
        returns.append(np.abs(path.x[-2] - x).max())
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.2)
    assert max(errors[1], returns[1]) < 0.05
    assert returns[1] < 0.6 * returns[0]


# `num_steps_for`


def test_the_number_of_steps_for_a_tolerance_keeps_it(x64, continuous):
    mean, std = 0.3, 0.5
    x_init = np.linspace(-2, 2, 7)[:, None]
    chain = jax.jit(lambda grid: sample(samplers.heun(), gaussian(mean, std), None, x_init, grid))
    draw = lambda n: chain(logsnr(continuous, n))
    exact = draw(300)
    chosen = [num_steps_for(draw, tolerance, start=4)[0] for tolerance in (1e-1, 1e-2)]
    assert chosen[0] < chosen[1]
    for tolerance, num_steps in zip((1e-1, 1e-2), chosen, strict=True):
        assert (
            np.sqrt(np.mean((draw(num_steps) - exact) ** 2)) < 1.5 * tolerance
        )  # of order 2, half as much were enough
        assert np.sqrt(np.mean((draw(num_steps // 4) - exact) ** 2)) > tolerance
    with pytest.raises(ValueError, match="16 and 32 steps differ by"):
        num_steps_for(draw, 1e-9, start=4, most=32)
    with pytest.raises(ValueError, match="above 0"):
        num_steps_for(draw, 0.0)


# Keys and noise


def test_keys_and_noise_belong_to_the_example():
    keys = example_keys(KEY, np.array([4, 2]))
    noise = normal(keys, SHAPE)
    for i, number in enumerate((4, 2)):
        np.testing.assert_array_equal(
            noise[i], jax.random.normal(jax.random.fold_in(KEY, number), SHAPE)
        )


@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (1.0, 80.0), (0.0, 1.0)])
def test_initial_noise_has_the_variance_of_noisy_unit_data(alpha, sigma):
    x = np.asarray(initial_noise(KEY[None], (50, 50), Level(0, alpha, sigma)))
    assert x.shape == (1, 50, 50)
    np.testing.assert_allclose(x.std(), np.hypot(alpha, sigma), rtol=4 / np.sqrt(2 * x.size))
    np.testing.assert_allclose(x.mean(), 0, atol=4 * np.hypot(alpha, sigma) / np.sqrt(x.size))
