import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.core.types import Level
from diffusion_jax.objectives.losses import NORMS, denoising

SHAPES = [(3, 2), (3, 4, 4, 2), (3, 2, 2, 2, 1)]
T = np.array([3, 50, 98])
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(1e-3, 0.2, 100))[T]  # of linear(100)
LEVEL = Level(T, np.sqrt(ALPHAS_CUMPROD), np.sqrt(1 - ALPHAS_CUMPROD))


def _case(shape):
    x0, eps, output = np.random.default_rng(0).normal(size=(3, *shape))
    column = (3, *[1] * (len(shape) - 1))
    return x0, eps, output, LEVEL.alpha.reshape(column), LEVEL.sigma.reshape(column)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_the_loss_is_the_mean_error_of_each_example(x64, shape, norm):
    x0, eps, output, alpha, sigma = _case(shape)
    targets = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma}
    for name, target in targets.items():
        losses = denoising(PREDICTIONS[name](), norm)(lambda x, t, cond: output, x0, eps, LEVEL)
        error = output - target
        assert losses.shape == (3,)
        for i in range(3):
            expected = np.mean(error[i] ** 2) if norm == "l2" else np.mean(np.abs(error[i]))
            np.testing.assert_allclose(losses[i], expected, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", PREDICTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_a_perfect_network_has_no_loss(parameterization_of, name, norm):
    x0, eps, *_ = _case((3, 4, 4, 2))
    parameterization = parameterization_of(name)
    network = lambda x, t, cond: parameterization.target(x0, eps, LEVEL)
    losses = denoising(parameterization, norm)(network, x0, eps, LEVEL)
    np.testing.assert_array_equal(losses, np.zeros(3))


def test_l2_is_the_default():
    x0, eps, output, *_ = _case((3, 2))
    losses = denoising(PREDICTIONS["eps"]())(lambda x, t, cond: output, x0, eps, LEVEL)
    np.testing.assert_allclose(losses, np.mean((output - eps) ** 2, axis=1), rtol=1e-5)


def test_the_network_sees_the_noisy_data_its_t_and_cond(x64):
    x0, eps, output, alpha, sigma = _case((3, 4, 4, 2))
    seen = []

    def network(*args):
        seen.append(args)
        return output

    labels = np.arange(3)
    denoising(PREDICTIONS["eps"]())(network, x0, eps, LEVEL, labels)
    ((x, t, cond),) = seen
    np.testing.assert_allclose(x, alpha * x0 + sigma * eps, rtol=1e-12)
    np.testing.assert_array_equal(t, LEVEL.t)
    assert cond is labels


def test_a_learned_variance_is_left_out(x64):
    x0, eps, output, *_ = _case((3, 4, 4, 2))
    loss = denoising(PREDICTIONS["eps"]())
    doubled = loss(
        lambda x, t, cond: jnp.concatenate([output, 9 * output], axis=-1), x0, eps, LEVEL
    )
    np.testing.assert_allclose(doubled, loss(lambda x, t, cond: output, x0, eps, LEVEL), rtol=1e-12)


def test_a_wrong_number_of_channels_is_a_clear_error():
    x0, eps, *_ = _case((3, 4, 4, 2))
    with pytest.raises(ValueError, match="3 channels for 2-channel data"):
        denoising(PREDICTIONS["eps"]())(lambda x, t, cond: jnp.zeros((3, 4, 4, 3)), x0, eps, LEVEL)


def test_an_example_is_judged_alone(x64):
    x0, eps, *_ = _case((3, 4, 4, 2))
    network = lambda x, t, cond: jnp.sin(x) + t[:, None, None, None] / 100
    loss = denoising(PREDICTIONS["v"]())
    whole = loss(network, x0, eps, LEVEL)
    for i in range(3):
        one = slice(i, i + 1)
        alone = loss(network, x0[one], eps[one], Level(*(a[one] for a in LEVEL)))
        np.testing.assert_allclose(alone, whole[one], rtol=1e-12)


@pytest.mark.parametrize("table", ["linear_1000", "cosine_100"])
@pytest.mark.parametrize(("name", "peer_name"), [("eps", "EPSILON"), ("x0", "START_X")])
def test_the_loss_is_the_peers(reference, table, name, peer_name):
    peer = reference("pointwise.npz")
    kind, num_steps = table.split("_")
    level = SCHEDULES[kind](int(num_steps)).level(peer[f"{table}/t"])
    network = lambda x, t, cond: peer["model_output"]
    losses = denoising(PREDICTIONS[name]())(network, peer["x_start"], peer["noise"], level)
    np.testing.assert_allclose(losses, peer[f"{table}/{peer_name}/training_mse"], rtol=1e-5)


def test_the_gradient_is_the_closed_form(x64):
    x0, eps, *_ = _case((3, 2))
    mean_loss = lambda b: jnp.mean(
        denoising(PREDICTIONS["eps"]())(lambda x, t, cond: b + 0 * x, x0, eps, LEVEL)
    )
    np.testing.assert_allclose(
        jax.jit(jax.grad(mean_loss))(0.5), 2 * np.mean(0.5 - eps), rtol=1e-12
    )
