import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import schedules
from diffusion_jax.denoisers import clip_x0, make_denoiser
from diffusion_jax.grids import respaced, uniform
from diffusion_jax.noise import normal
from diffusion_jax.predictions import PREDICTIONS
from diffusion_jax.samplers import SAMPLERS, ancestral, ddim, example_keys, initial_noise, sample
from diffusion_jax.types import Level, Prediction, Sampler

# Every sampler at its defaults, and the settings that change the law of its result.
CASES = {
    **{name: factory() for name, factory in SAMPLERS.items()},
    "ancestral fixed_large": ancestral("fixed_large"),
    "ddim eta=0.5": ddim(0.5),
}
# Of the error on Gaussian data; a new sampler states its own.
ORDERS = {"ancestral": 1, "ancestral fixed_large": 1, "ddim": 1, "ddim eta=0.5": 1}
KEY = jax.random.key(0)
SHAPE = (2, 2, 1)


def _gaussian(mean, std):
    """The exact denoiser of N(mean, std^2) data."""

    def denoiser(x, level):
        level = level.expand(x.ndim)
        gain = level.alpha * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
        x0 = mean + gain * (x - level.alpha * mean)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoiser


def _mixture(weights, means, stds):
    """The exact denoiser of a mixture of isotropic Gaussians: weights [K], means [K, D], stds [K]."""

    def denoiser(x, level):
        variance = level.alpha**2 * stds**2 + level.sigma**2  # [K]
        offset = x[:, None] - level.alpha * means  # [B, K, D]
        log_joint = jnp.log(weights) - offset.shape[-1] / 2 * jnp.log(variance) - (offset**2).sum(-1) / (2 * variance)
        share = jnp.exp(log_joint - jax.scipy.special.logsumexp(log_joint, axis=1, keepdims=True))
        of_each = means + (level.alpha * stds**2 / variance)[:, None] * offset
        x0 = (share[..., None] * of_each).sum(1)
        return Prediction(x0, (x - level.alpha * x0) / level.sigma)

    return denoiser


@pytest.fixture
def injected(monkeypatch):
    """(sampler, noise [N - 1, B, ...]) -> the sampler whose step i draws noise[i], one draw a step, whatever its keys."""

    def inject(sampler, noise):
        def step(keys, denoiser, x, state, t, s):
            i, state = state
            draws = [jnp.asarray(noise)[i]]
            monkeypatch.setattr("diffusion_jax.noise.normal", lambda keys, shape: draws.pop())
            x, state = sampler.step(keys, denoiser, x, state, t, s)
            return x, (i + 1, state)

        return Sampler(lambda x, level: (0, sampler.init(x, level)), step)

    return inject


@pytest.fixture
def noise_by_index(monkeypatch):
    """A step's keys are indices into a fixed array of noise. Threefry takes the compiler most of a second."""
    noise = np.random.default_rng(1).normal(size=(3, 12))
    monkeypatch.setattr("diffusion_jax.noise.normal", lambda keys, shape: jnp.asarray(noise)[keys].reshape(-1, *shape))


def _start(grid):
    return Level(*(a[0] for a in grid))


def _run(sampler, denoiser, grid, index=(0, 1, 2), shape=SHAPE, trajectory=False):
    """Samples number index, each from its key alone."""

    @jax.jit
    def run(index):
        keys = example_keys(KEY, index)
        return sample(sampler, denoiser, keys, initial_noise(keys, shape, _start(grid)), grid, trajectory)

    return run(np.array(index))


def _wavy(x, level):
    """A denoiser of no particular data."""
    level = level.expand(x.ndim)
    x0 = jnp.tanh(x + jnp.cos(0.1 * level.t))
    return Prediction(x0, (x - level.alpha * x0) / level.sigma)


# Laws of every sampler


@pytest.mark.parametrize("name", CASES)
def test_data_of_one_point_are_found_exactly(injected, x64, continuous, name):
    point = np.random.default_rng(0).normal(size=(2, 2, 1))

    def network(params, x, t, cond):  # the noise that takes the point to x
        angle = (t * jnp.pi / 2)[:, None, None, None]
        return (x - jnp.cos(angle) * point) / jnp.sin(angle)

    denoiser = make_denoiser(network, None, PREDICTIONS["eps"]())
    noise = np.random.default_rng(1).normal(size=(4, 3, 2, 2, 1))
    sampler = injected(CASES[name], noise)
    x0 = jax.jit(lambda x: sample(sampler, denoiser, KEY[None], x, uniform(continuous, 5)))(noise[0] + 1)
    np.testing.assert_allclose(x0, np.broadcast_to(point, x0.shape), rtol=1e-10)


def _moments(injected, sampler, grid, mean, std):
    """Means [N + 1] and deviations [N + 1] of a chain on N(mean, std^2) data; exact, as it is affine in its noise."""
    num, start = len(grid.t), _start(grid)
    # the first of N noises makes x_T, the others go to the steps; example 0 has none, example i + 1 one unit of noise i
    noise = np.concatenate([np.zeros((1, num)), np.eye(num)])
    x_init = start.alpha * mean + np.sqrt(start.alpha**2 * std**2 + start.sigma**2) * noise[:, :1]
    noisy = injected(sampler, noise[:, 1:].T[..., None])
    run = lambda x: sample(noisy, _gaussian(mean, std), KEY[None], x, grid, trajectory=True)
    xs = np.asarray(jax.jit(run)(x_init)[1])[..., 0]
    return xs[:, 0], np.linalg.norm(xs[:, 1:] - xs[:, :1], axis=1)


@pytest.mark.parametrize("name", CASES)
def test_gaussian_data_are_reached_at_the_samplers_order(injected, x64, continuous, name):
    mean, std = 0.3, 0.5
    last = continuous.level(continuous.t_min)
    # an endless grid keeps the marginal down to t_min, and the last hop takes the posterior's mean
    expected = last.alpha * std**2 / jnp.sqrt(last.alpha**2 * std**2 + last.sigma**2)
    errors = []
    for steps in (128, 256):
        means, stds = _moments(injected, CASES[name], uniform(continuous, steps + 1), mean, std)
        np.testing.assert_allclose(means[-1], mean, rtol=1e-9)  # the mean has no error: the noise is symmetric
        errors.append(abs(float(stds[-1] - expected)))
    assert errors[1] < 0.01
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), ORDERS[name], atol=0.1)


@pytest.mark.parametrize("name", CASES)
def test_a_mixture_of_gaussians_is_reached(name):
    weights, means, stds = np.array([0.3, 0.7]), np.array([[-0.9, 0.4], [0.6, -0.2]]), np.array([0.25, 0.2])
    grid = uniform(schedules.linear(), 400)
    x0 = np.asarray(_run(CASES[name], _mixture(weights, means, stds), grid, range(2500), shape=(2,)))
    first = x0[:, 0] < -0.1  # three deviations from either mean
    np.testing.assert_allclose(first.mean(), weights[0], atol=4 * np.sqrt(weights[0] * weights[1] / len(x0)))
    for part, mean, std in ((x0[first], means[0], stds[0]), (x0[~first], means[1], stds[1])):
        np.testing.assert_allclose(part.mean(axis=0), mean, atol=4 * std / np.sqrt(len(part)))
        # 400 steps of order 1 leave up to 3 % on top of the sampling error
        np.testing.assert_allclose(part.std(axis=0), std, rtol=0.03 + 4 / np.sqrt(2 * len(part)))


@pytest.mark.parametrize("name", CASES)
def test_a_steps_jit_is_eager(noise_by_index, name):
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 3))
    t, s = Level(60, 0.6, 0.8), Level(30, 0.8, 0.6)
    state = CASES[name].init(x, t)
    step = lambda keys, x, state, t, s: CASES[name].step(keys, _wavy, x, state, t, s)
    (eager, after), (jitted, jitted_after) = (f(np.arange(3), x, state, t, s) for f in (step, jax.jit(step)))
    np.testing.assert_allclose(jitted, eager, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(after) == jax.tree.structure(jitted_after) == jax.tree.structure(state)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sample_i_is_the_same_in_any_batch(name):
    grid = uniform(schedules.linear(100), 4)
    whole, alone = (_run(CASES[name], _wavy, grid, index) for index in ([0, 1, 2, 3], [2]))
    assert len(np.unique(whole)) == whole.size
    np.testing.assert_allclose(alone[0], whole[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_levels_per_example_are_levels_one_by_one(noise_by_index, name):
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 3))
    angle = np.array([[0.2, 0.9, 1.5], [0.1, 0.8, 0.4]])
    t, s = (Level(np.arange(3), np.cos(a), np.sin(a)) for a in angle)
    step = jax.jit(lambda keys, x, t, s: CASES[name].step(keys, _wavy, x, CASES[name].init(x, t), t, s)[0])
    together = step(np.arange(3), x, t, s)
    assert together.shape == x.shape
    for i in range(3):
        alone = step(np.array([i]), x[i : i + 1], *(Level(*(a[i] for a in level)) for level in (t, s)))
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_shape_of_an_example_does_not_matter(noise_by_index, name):
    x = np.random.default_rng(0).normal(size=(3, 12))
    t, s = Level(60, 0.6, 0.8), Level(30, 0.8, 0.6)
    step = jax.jit(lambda x: CASES[name].step(np.arange(3), _wavy, x, CASES[name].init(x, t), t, s)[0])
    points, videos = step(x), step(x.reshape(3, 2, 2, 1, 3))
    np.testing.assert_allclose(videos.reshape(3, 12), points, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_grid_of_one_level_returns_the_denoisers_x0(injected, name):
    grid = Level(np.array([99]), np.array([0.1]), np.array([0.99]))
    x_init = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
    sampler = injected(CASES[name], x_init[None])  # traced, never drawn
    x0, xs = jax.jit(lambda x: sample(sampler, _wavy, KEY[None], x, grid, trajectory=True))(x_init)
    assert xs.shape == (2, *x_init.shape)
    np.testing.assert_allclose(x0, np.tanh(x_init + np.cos(9.9)), rtol=1e-5)
    np.testing.assert_array_equal(xs[0], x_init)
    np.testing.assert_array_equal(xs[1], x0)


# `sample`


def test_a_trajectory_goes_from_x_init_to_the_result(injected):
    grid = uniform(schedules.linear(100), 5)
    noise = np.random.default_rng(0).normal(size=(4, 3, *SHAPE)).astype(np.float32)
    x_init = noise[0] + 1
    run = lambda x, **options: sample(injected(ancestral(), noise), _wavy, KEY[None], x, grid, **options)
    plain = jax.jit(run)(x_init)
    x0, xs = run(x_init, trajectory=True)
    assert xs.shape == (6, *x_init.shape)
    np.testing.assert_array_equal(xs[0], x_init)
    np.testing.assert_array_equal(xs[-1], x0)
    np.testing.assert_allclose(x0, plain, rtol=1e-5, atol=1e-6)  # so the chain's jit is eager, too
    np.testing.assert_allclose(x0, np.tanh(xs[-2] + 1), rtol=1e-5, atol=1e-6)  # cos(0) = 1


def test_steps_meet_neighbouring_levels_in_order_and_carry_their_state():
    grid = uniform(schedules.linear(100), 4)

    def step(keys, denoiser, x, state, t, s):
        count, expected_t = state
        return x.at[:, count].set(jnp.stack([t.t, s.t, expected_t]).astype(x.dtype)), (count + 1, s.t)

    recorder = Sampler(lambda x, level: (0, level.t), step)
    _, xs = sample(recorder, _wavy, KEY[None], jnp.zeros((1, 3, 3)), grid, trajectory=True)
    np.testing.assert_array_equal(xs[-2][0], [[99, 66, 99], [66, 33, 66], [33, 0, 33]])


def test_every_step_and_example_draws_its_own_noise():
    step = lambda keys, denoiser, x, state, t, s: (normal(keys, x.shape[1:]), state)
    noise = Sampler(lambda x, level: (), step)
    _, xs = _run(noise, _wavy, uniform(schedules.linear(100), 5), trajectory=True)
    assert len(np.unique(xs[1:-1])) == 4 * 3 * 4


# Keys and noise


def test_keys_and_noise_belong_to_the_example():
    keys = example_keys(KEY, np.array([4, 2]))
    noise = normal(keys, SHAPE)
    for i, number in enumerate((4, 2)):
        np.testing.assert_array_equal(noise[i], jax.random.normal(jax.random.fold_in(KEY, number), SHAPE))


@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (1.0, 80.0), (0.0, 1.0)])
def test_initial_noise_has_the_variance_of_noisy_unit_data(alpha, sigma):
    x = np.asarray(initial_noise(KEY[None], (50, 50), Level(0, alpha, sigma)))
    assert x.shape == (1, 50, 50)
    np.testing.assert_allclose(x.std(), np.hypot(alpha, sigma), rtol=4 / np.sqrt(2 * x.size))
    np.testing.assert_allclose(x.mean(), 0, atol=4 * np.hypot(alpha, sigma) / np.sqrt(x.size))


# Ancestral sampling and DDIM


@pytest.mark.parametrize(
    ("sampler", "std"),
    [
        (ancestral(), 0.0),
        (ancestral("fixed_large"), 1.0),
        (ddim(0.0), 0.0),
        (ddim(0.5), 0.0),
        (ddim(1.0), 0.0),
    ],
    ids=["fixed_small", "fixed_large", "eta=0", "eta=0.5", "eta=1"],
)
def test_the_marginals_are_exact_for_the_data_that_the_variance_is_right_for(injected, x64, sampler, std):
    # Ho et al. 2020, section 3.2: fixed small for one point, fixed large for N(0, I); Song et al. 2021, lemma 1
    mean = 0.4 * (1 - std)
    grid = respaced(schedules.cosine(100), "8")
    means, stds = _moments(injected, sampler, grid, mean, std)
    np.testing.assert_allclose(means[:-1], grid.alpha * mean, atol=1e-9)
    np.testing.assert_allclose(stds[:-1], np.sqrt(grid.alpha**2 * std**2 + grid.sigma**2), rtol=1e-9)


def test_ddim_follows_the_probability_flow_at_order_one(x64, continuous):
    # Gaussian data: (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant along the flow
    mean, std = 0.3, 0.5
    scale = lambda level: jnp.sqrt(level.alpha**2 * std**2 + level.sigma**2)
    first, last = continuous.level(continuous.t_max), continuous.level(continuous.t_min)
    x_init = np.array([[-2.0], [-0.5], [0.7], [1.8]])
    at_last = last.alpha * mean + scale(last) / scale(first) * (x_init - first.alpha * mean)
    expected = mean + last.alpha * std**2 / scale(last) ** 2 * (at_last - last.alpha * mean)
    errors = []
    for steps in (64, 128):
        grid = uniform(continuous, steps + 1)
        x0 = jax.jit(lambda x, grid=grid: sample(ddim(), _gaussian(mean, std), KEY[None], x, grid))(x_init)
        errors.append(np.abs(x0 - expected).max())
    assert errors[-1] < 0.02
    np.testing.assert_allclose(np.log2(errors[:-1]) - np.log2(errors[1:]), 1, atol=0.03)


def test_ddim_of_eta_one_is_ancestral(injected, x64):
    noise = np.random.default_rng(0).normal(size=(5, 3, *SHAPE))

    @jax.jit
    def both(x, grid):
        chains = (injected(sampler, noise) for sampler in (ddim(1.0), ancestral()))
        return [sample(chain, _wavy, KEY[None], x, grid, trajectory=True)[1] for chain in chains]

    t = np.linspace(0.9, 0.1, 6)
    for grid in (
        Level(t, np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)),  # variance preserving
        Level(t, np.ones(6), 20 * t),  # variance exploding
        Level(t, 1 - t, t),  # rectified flow
    ):
        np.testing.assert_allclose(*both(grid.sigma[0] * noise[0] + 1, grid), rtol=1e-9, atol=1e-9)


def test_ddim_without_eta_draws_no_noise(monkeypatch):
    monkeypatch.setattr("diffusion_jax.noise.normal", None)
    denoiser = lambda x, level: Prediction(2.0 * x, 3.0 * x)
    x, _ = ddim().step(None, denoiser, np.ones((1, 2)), (), Level(1, 0.6, 0.8), Level(0, 0.8, 0.6))
    np.testing.assert_allclose(x, np.full((1, 2), 0.8 * 2 + 0.6 * 3), rtol=1e-6)


def test_a_variance_of_no_name_is_an_error():
    with pytest.raises(ValueError, match="fixed_small, fixed_large.*'medium'"):
        ancestral("medium")


def _mean_and_variance(monkeypatch, step):
    """Of the Gaussian that one step, a function of nothing, draws from."""
    results = []
    for draw in (0.0, 1.0):
        monkeypatch.setattr("diffusion_jax.noise.normal", lambda keys, shape, draw=draw: jnp.full((1, *shape), draw))
        results.append(step())
    return results[0], (results[1] - results[0]) ** 2


def test_fixed_large_is_beta_fixed_small_beta_tilde_and_eta_scales_its_root(monkeypatch, reference, x64):
    tables = {key.removeprefix("cosine_50/"): a for key, a in reference("schedules.npz").items()}
    schedule = schedules.cosine(50)
    levels = schedule.level(np.arange(49)), schedule.level(np.arange(1, 50))
    for sampler, expected in (
        (ancestral("fixed_large"), tables["betas"]),
        (ancestral("fixed_small"), tables["posterior_variance"]),
        (ddim(0.5), 0.25 * tables["posterior_variance"]),
    ):
        one = lambda s, t, sampler=sampler: sampler.step(None, _wavy, jnp.ones((1, 1)), (), t, s)[0]
        _, found = _mean_and_variance(monkeypatch, lambda one=one: jax.vmap(one)(*levels))
        np.testing.assert_allclose(found.ravel(), expected[1:], rtol=1e-9)


@pytest.mark.parametrize("table", ["linear_1000", "cosine_100", "cosine_4000"])
@pytest.mark.parametrize(("prediction", "peer_name"), [("eps", "EPSILON"), ("x0", "START_X")])
def test_a_step_is_the_peers(monkeypatch, reference, x64, table, prediction, peer_name):
    peer = {key.removeprefix(f"{table}/"): a for key, a in reference("pointwise.npz").items()}
    kind, num_steps = table.split("_")
    schedule = schedules.SCHEDULES[kind](int(num_steps))
    inner = peer["t"] > 0  # from index 0 the library takes the last hop, which is no step

    t, s = schedule.level(peer["t"][inner]), schedule.level(peer["t"][inner] - 1)

    def steps(sampler):
        def one(x, output, t, s):
            denoiser = make_denoiser(lambda params, x, t, cond: output[None], None, PREDICTIONS[prediction]())
            return sampler.step(None, clip_x0(denoiser), x[None], (), t, s)[0][0]

        return _mean_and_variance(monkeypatch, lambda: jax.vmap(one)(x, output, t, s))

    x, output = peer["x_t"][inner].astype(float), peer["model_output"][inner].astype(float)
    for variance in ("fixed_small", "fixed_large"):
        mean, found = steps(ancestral(variance))
        np.testing.assert_allclose(mean, peer[f"{peer_name}/p_mean_clipped"][inner], atol=5e-6)
        log_variance = peer[f"{variance.upper()}/p_log_variance"][inner]
        np.testing.assert_allclose(np.log(found[:, 0, 0, 0]), log_variance, rtol=1e-5)
    after, _ = steps(ddim())
    # the peer rounds 1 - alphas_cumprod to float32, 3e-8, before it takes the root that scales eps
    alpha, sigma, cleaner_sigma = (np.reshape(a, (-1, 1, 1, 1)) for a in (t.alpha, t.sigma, s.sigma))
    eps = (x - alpha * peer[f"{peer_name}/p_pred_xstart_clipped"][inner]) / sigma
    tolerance = 5e-6 + 3e-8 / (2 * cleaner_sigma) * np.abs(eps)
    assert np.all(np.abs(after - peer[f"{peer_name}/ddim_eta0"][inner]) < tolerance)


CHAINS = ["cosine_200_ddim25", "linear_1000_50", "cosine_4000_10,20,30", "linear_100_100"]


def _peers_chain(reference, name):
    peer = {key.removeprefix(f"{name}/"): a for key, a in reference("chains.npz").items() if key.startswith(name)}
    kind, num_steps, spacing = name.split("_")
    network = lambda params, x, t, cond: 0.3 * x + 0.1 * jnp.cos(0.01 * t)[:, None, None, None]
    denoiser = clip_x0(make_denoiser(network, None, PREDICTIONS["eps"]()))
    return peer, denoiser, respaced(schedules.SCHEDULES[kind](int(num_steps)), spacing)


@pytest.mark.parametrize("name", CHAINS)
def test_ddim_chains_are_the_peers(reference, name):
    peer, denoiser, grid = _peers_chain(reference, name)
    x0 = jax.jit(lambda x: sample(ddim(), denoiser, KEY[None], x, grid))(peer["x_T"])
    np.testing.assert_allclose(x0, peer["ddim_sample"], atol=1e-3)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_chains_are_the_papers_algorithm(reference, injected, variance):
    # Ho et al. 2020, algorithm 2, in float64 on the peer's rewritten betas, indices and noise
    peer, denoiser, grid = _peers_chain(reference, "cosine_200_ddim25")
    betas, noise, x = peer["betas"], peer["ancestral_noise"], peer["x_T"].astype(float)
    alphas_cumprod = np.cumprod(1 - betas)
    for i in range(24, 0, -1):
        bar, prev = alphas_cumprod[i], alphas_cumprod[i - 1]
        eps = 0.3 * x + 0.1 * np.cos(0.01 * peer["timestep_map"][i])
        x0 = np.clip((x - np.sqrt(1 - bar) * eps) / np.sqrt(bar), -1, 1)
        mean = (np.sqrt(prev) * betas[i] * x0 + np.sqrt(1 - betas[i]) * (1 - prev) * x) / (1 - bar)
        var = betas[i] if variance == "fixed_large" else betas[i] * (1 - prev) / (1 - bar)
        x = mean + np.sqrt(var) * noise[24 - i]
    eps = 0.3 * x + 0.1 * np.cos(0.01 * peer["timestep_map"][0])
    expected = np.clip((x - np.sqrt(betas[0]) * eps) / np.sqrt(1 - betas[0]), -1, 1)
    sampler = injected(ancestral(variance), noise[:24])
    _, xs = jax.jit(lambda x: sample(sampler, denoiser, KEY[None], x, grid, trajectory=True))(peer["x_T"])
    np.testing.assert_allclose(xs[-2], x, atol=1e-4)
    np.testing.assert_allclose(xs[-1], expected, atol=1e-4)
