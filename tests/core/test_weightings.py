"""Loss weights: closed forms, and the law that they belong to the denoiser and not to what its
network predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import predictions, schedules
from diffusion_jax.core.types import Level
from diffusion_jax.core.weightings import WEIGHTINGS, edm, min_snr, p2
from diffusion_jax.objectives.losses import denoising, hybrid, vlb

# name -> (snr, whatever its noise) -> the weight of ||x0 - predicted x0||^2; a new weighting states
# its own
OF_X0 = {
    "simple": lambda snr: snr,
    "x0": lambda snr: 1.0,
    "v": lambda snr: snr + 1.0,
    "flow": lambda snr: (snr**0.5 + 1.0) ** 2,
    "truncated_snr": lambda snr: max(snr, 1.0),
    "min_snr": lambda snr: min(snr, 5.0),
    "p2": lambda snr: snr / (1.0 + snr),
    "edm": lambda snr: (1.0 / snr + 0.25) / (0.25 / snr),
}
NUM_STEPS = 100
T = np.array([0, 1, 40, 80, 99])
SHAPE = (5, 2, 2, 3)


class Case:
    """A denoiser's guess at x0, and every network's output that stands for it, by float64 closed
    forms on the betas."""

    def __init__(self, kind):
        betas = schedules.BETAS[kind](NUM_STEPS)
        self.schedule, self.level = (
            schedules.from_betas(betas),
            schedules.from_betas(betas).level(T),
        )
        column = lambda a: a[T].reshape(-1, 1, 1, 1)
        bar = np.cumprod(1 - betas)
        prev = np.append(1.0, bar[:-1])
        self.snr = (bar / (1 - bar))[T]
        self.x0, self.eps, error = np.random.default_rng(0).normal(size=(3, *SHAPE))
        self.guess = self.x0 + 0.1 * error
        alpha, sigma = np.sqrt(column(bar)), np.sqrt(1 - column(bar))
        x_t = alpha * self.x0 + sigma * self.eps
        eps = (x_t - alpha * self.guess) / sigma
        c_out = (
            0.5 * (sigma / alpha) / np.sqrt(0.25 + (sigma / alpha) ** 2)
        )  # Karras et al. 2022, table 1
        of_x0, of_x_t = (
            np.sqrt(prev) * betas / (1 - bar),
            np.sqrt(1 - betas) * (1 - prev) / (1 - bar),
        )
        self.outputs = {
            "eps": eps,
            "x0": self.guess,
            "v": alpha * eps - sigma * self.guess,
            "score": -eps / sigma,
            "flow": eps - self.guess,
            "edm": (self.guess - 0.25 / (0.25 + (sigma / alpha) ** 2) * x_t / alpha) / c_out,
            "mean": column(of_x0) * self.guess + column(of_x_t) * x_t,
        }
        # ||error of the target||^2 / ||error of x0||^2
        self.factors = {
            "eps": self.snr,
            "x0": 1.0,
            "v": self.snr + 1,
            "score": self.snr / (1 - bar[T]),
            "mean": of_x0[T] ** 2,
        }
        self.factors |= {"flow": (np.sqrt(self.snr) + 1) ** 2, "edm": 1 / c_out.ravel() ** 2}
        self.error = np.mean((self.guess - self.x0) ** 2, axis=(1, 2, 3))

    def parameterization(self, name):
        return (
            predictions.mean(self.schedule) if name == "mean" else predictions.PREDICTIONS[name]()
        )

    def loss(self, name, weighting):
        network = lambda x, t, cond: self.outputs[name]
        return denoising(self.parameterization(name), weighting=weighting)(
            network, self.x0, self.eps, self.level
        )


@pytest.fixture(params=["linear", "cosine"])
def case(request, x64):
    return Case(request.param)


def test_every_weighting_and_parameterization_is_held_to_the_law():
    assert set(OF_X0) == set(WEIGHTINGS)
    with jax.enable_x64(True):
        assert set(Case("linear").outputs) == set(predictions.PREDICTIONS)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", predictions.PREDICTIONS)
def test_the_weighted_loss_is_one_number_whatever_the_network_predicts(case, weighting, name):
    expected = np.array([OF_X0[weighting](snr) for snr in case.snr]) * case.error
    np.testing.assert_allclose(case.loss(name, WEIGHTINGS[weighting]()), expected, rtol=1e-7)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "flow"])
def test_the_law_holds_for_schedules_that_do_not_preserve_variance(x64, weighting, name):
    t = np.array([0.1, 0.5, 0.9])
    x0, eps, error = np.random.default_rng(1).normal(size=(3, 3, 4))
    for level in (
        Level(t, 1 - t, t),
        Level(t, np.ones(3), 20 * t),
    ):  # rectified flow; variance exploding
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        guess = x0 + 0.1 * error
        noise = (alpha * x0 + sigma * eps - alpha * guess) / sigma
        output = {
            "eps": noise,
            "x0": guess,
            "v": alpha * noise - sigma * guess,
            "score": -noise / sigma,
            "flow": noise - guess,
        }[name]
        loss = denoising(predictions.PREDICTIONS[name](), weighting=WEIGHTINGS[weighting]())
        expected = [OF_X0[weighting](snr) for snr in (level.alpha / level.sigma) ** 2] * np.mean(
            (0.1 * error) ** 2, axis=1
        )
        np.testing.assert_allclose(
            loss(lambda x, t, cond, out=output: out, x0, eps, level), expected, rtol=1e-9
        )


def test_the_weights_of_pure_noise_are_finite():
    # alpha = 0, the end of rectified flow and of a table whose last beta is 1
    limits = {
        "simple": 0,
        "x0": 1,
        "v": 1,
        "flow": 1,
        "truncated_snr": 1,
        "min_snr": 0,
        "p2": 0,
        "edm": 1 / 0.5**2,
    }
    for name, factory in WEIGHTINGS.items():
        np.testing.assert_allclose(
            factory()(Level(np.ones(1), np.zeros(1), np.ones(1))), limits[name], err_msg=name
        )


# What the papers write, as the weight of the error of the network's own target.
_min = np.minimum
CLOSED = {
    "min-SNR on eps": ("eps", min_snr(), lambda snr: _min(snr, 5) / snr),
    "min-SNR on x0": ("x0", min_snr(), lambda snr: _min(snr, 5)),
    "min-SNR on v": ("v", min_snr(), lambda snr: _min(snr, 5) / (snr + 1)),
    "min-SNR of another gamma on v": ("v", min_snr(0.5), lambda snr: _min(snr, 0.5) / (snr + 1)),
    "p2 on eps": ("eps", p2(), lambda snr: 1 / (1 + snr)),
    "p2 of other settings on eps": ("eps", p2(gamma=0.5, k=3.0), lambda snr: 1 / (3 + snr) ** 0.5),
    "p2 without gamma on eps": ("eps", p2(gamma=0.0), np.ones_like),
    "truncated SNR on x0": ("x0", WEIGHTINGS["truncated_snr"](), lambda snr: np.maximum(snr, 1)),
    "truncated SNR on eps": (
        "eps",
        WEIGHTINGS["truncated_snr"](),
        lambda snr: np.maximum(1, 1 / snr),
    ),
    "SNR+1 on v": ("v", WEIGHTINGS["v"](), np.ones_like),
    "the velocity's on flow": ("flow", WEIGHTINGS["flow"](), np.ones_like),
    "the velocity's on x0": ("x0", WEIGHTINGS["flow"](), lambda snr: (np.sqrt(snr) + 1) ** 2),
    "simple on eps": ("eps", WEIGHTINGS["simple"](), np.ones_like),
    "simple on x0": ("x0", WEIGHTINGS["simple"](), lambda snr: snr),
    "simple on v": ("v", WEIGHTINGS["simple"](), lambda snr: snr / (snr + 1)),
    "x0 on x0": ("x0", WEIGHTINGS["x0"](), np.ones_like),
    "EDM on eps": ("eps", edm(0.5), lambda snr: 1 + 1 / (0.25 * snr)),
    "EDM on EDM's network": ("edm", edm(0.5), np.ones_like),
    "EDM of unit data on v": (
        "v",
        edm(1.0),
        np.ones_like,
    ),  # Karras et al.'s preconditioning is v where sigma_data = 1
}


@pytest.mark.parametrize("law", CLOSED)
def test_the_papers_closed_forms(case, law):
    name, weighting, expected = CLOSED[law]
    own_error = case.loss(name, None)  # without a weighting, that of the network's target
    np.testing.assert_allclose(
        case.loss(name, weighting), expected(case.snr) * own_error, rtol=1e-9
    )


def test_an_x0_network_with_the_velocitys_weight_has_jits_loss(x64):
    """JiT's training step in its own time 1 - t: z = t x + (1 - t) e, and the mean square of
    (x - z) / max(1 - t, 0.05) less that of the network's x."""
    t = np.array([0.02, 0.5, 0.98])
    x0, eps, guess = np.random.default_rng(2).normal(size=(3, 3, 4))
    theirs, least = 1 - t[:, None], np.maximum(t, 0.05)[:, None]
    z = theirs * x0 + (1 - theirs) * eps
    expected = np.mean(((x0 - z) / least - (guess - z) / least) ** 2, axis=1)
    loss = denoising(predictions.x0(), weighting=WEIGHTINGS["flow"](least=0.05))
    level = schedules.rectified_flow().level(t)
    np.testing.assert_allclose(loss(lambda x, t, cond: guess, x0, eps, level), expected, rtol=1e-9)
    # where nothing is clipped, the loss of the velocity itself
    velocity = lambda x, t_in, cond: (x - guess) / t[:, None]
    own = denoising(predictions.flow())(velocity, x0, eps, level)
    np.testing.assert_allclose(own[1:], expected[1:], rtol=1e-9)


@pytest.mark.parametrize("name", predictions.PREDICTIONS)
def test_without_a_weighting_the_error_of_the_target_counts_once(case, name):
    np.testing.assert_allclose(case.loss(name, None), case.factors[name] * case.error, rtol=1e-9)


@pytest.mark.parametrize("name", predictions.PREDICTIONS)
def test_float32_keeps_the_law_at_every_t(name):
    with jax.enable_x64(True):
        double = Case("cosine")
        expected = [min(snr, 5.0) for snr in double.snr] * double.error
    single = Case("cosine")
    loss = denoising(single.parameterization(name), weighting=min_snr())
    output, x0, eps = (np.float32(a) for a in (single.outputs[name], single.x0, single.eps))
    found = loss(lambda x, t, cond: output, x0, eps, single.level)
    # at the last index, whose snr is 1e-6, the error of eps is lost in its rounding
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=2e-4)
    assert np.all(np.isfinite(found))


def test_a_weighting_scales_the_gradient_and_leaves_the_minimum(case):
    loss = lambda scale, weighting: jnp.sum(
        denoising(predictions.eps(), weighting=weighting)(
            lambda x, t, cond: case.eps + scale * (case.outputs["eps"] - case.eps),
            case.x0,
            case.eps,
            case.level,
        )
    )
    np.testing.assert_allclose(jax.grad(loss)(0.0, min_snr()), 0.0, atol=1e-12)
    expected = np.sum(2 * np.minimum(case.snr, 5) * case.error)
    np.testing.assert_allclose(jax.grad(loss)(1.0, min_snr()), expected, rtol=1e-8)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_hybrid_weighs_l_simple_and_not_the_bound(kind):
    case = Case(kind)
    output, x0, eps = (np.float32(a) for a in (case.outputs["eps"], case.x0, case.eps))
    network = lambda x, t, cond: jnp.concatenate([output, np.full(SHAPE, 0.3, np.float32)], axis=-1)
    arguments = network, x0, eps, case.level
    bits = jax.jit(lambda: vlb(predictions.eps(), case.schedule, scaled=True)(*arguments))()
    found = jax.jit(
        lambda: hybrid(predictions.eps(), case.schedule, weighting=min_snr())(*arguments)
    )()
    expected = np.minimum(case.snr, 5) * case.error + 0.001 * np.asarray(bits)
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-4)


@pytest.mark.parametrize("name", predictions.PREDICTIONS)
def test_the_bound_too_is_one_number_whatever_the_network_predicts(name):
    # with the fixed-small variance (snr_s - snr_t) / 2 times the error of x0, in nats (Kingma et
    # al. 2021, eq. 13)
    case = Case("linear")
    loss = vlb(case.parameterization(name), case.schedule, "fixed_small")
    output, x0, eps = (np.float32(a) for a in (case.outputs[name], case.x0, case.eps))
    found = jax.jit(lambda: loss(lambda x, t, cond: output, x0, eps, case.level))()
    bar = np.cumprod(1 - schedules.linear_betas(NUM_STEPS))
    drop = -np.diff(bar / (1 - bar))[T[1:] - 1]
    # float32, and alpha = 0.007 at the last index
    np.testing.assert_allclose(found[1:], 0.5 * drop * case.error[1:] / np.log(2), rtol=5e-3)


def test_a_weighting_of_absolute_errors_is_a_clear_error():
    with pytest.raises(ValueError, match="l2"):
        denoising(predictions.eps(), "l1", min_snr())
