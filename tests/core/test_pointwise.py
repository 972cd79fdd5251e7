"""One step of another implementation, number by number: every parameterization, variance, loss and
the two DDIM directions.

The five t of each table are its first two, two in the middle and its last.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from diffusion_jax import samplers
from diffusion_jax.core import predictions, schedules
from diffusion_jax.core.process import (
    first_log_variance,
    q_posterior,
    q_sample,
    reverse_log_variance,
)
from diffusion_jax.core.types import Level
from diffusion_jax.denoisers import clip_x0, make_denoiser
from diffusion_jax.likelihood import variational as likelihood
from diffusion_jax.objectives import losses

TABLES = ["linear_1000", "cosine_4000", "cosine_100"]
PARAMETERIZATIONS = {
    "EPSILON": lambda schedule: predictions.eps(),
    "START_X": lambda schedule: predictions.x0(),
    "PREVIOUS_X": predictions.mean,
}
VARIANCES = ["fixed_small", "fixed_large", "learned_range"]
BITS = dict(rtol=1e-3, atol=1e-6)  # relative: a good network's terms are thousandths of a bit


def _close(found, expected, tolerance=2e-4, rounding=0.0):
    """Absolute or relative, whichever is wider, and what the peer's own rounding adds."""
    found, expected = np.broadcast_arrays(np.asarray(found), expected)
    assert np.all(np.isfinite(found))
    assert (
        np.max(np.abs(found - expected) - tolerance * np.maximum(1.0, np.abs(expected)) - rounding)
        < 0
    )


class Case:
    """A table and a parameterization: the peer's numbers, and the library's objects for the same
    inputs."""

    def __init__(self, everything, table, mean):
        self.peer = {key.removeprefix(f"{table}/"): a for key, a in everything.items()}
        kind, num_steps = table.split("_")
        self.mean, self.num_steps = mean, int(num_steps)
        self.schedule = schedules.SCHEDULES[kind](self.num_steps)
        self.parameterization = PARAMETERIZATIONS[mean](self.schedule)
        self.x_start, self.noise = self.peer["x_start"], self.peer["noise"]
        self.t = self.schedule.level(self.peer["t"])
        self.s = schedules.previous(self.schedule, self.t)
        self.x_t = q_sample(self.x_start, self.noise, self.t)

    def expected(self, name):
        return self.peer[f"{self.mean}/{name}"]

    def network(self, x, t, cond, variance="learned_range"):
        parts = [self.peer["model_output"], self.peer["model_variance"]]
        return jnp.concatenate(parts[: 1 + (variance == "learned_range")], axis=-1)

    def prediction(self, clipped, variance="learned_range"):
        apply_fn = lambda params, *args: self.network(*args, variance)
        denoiser = make_denoiser(apply_fn, None, self.parameterization)
        return (clip_x0(denoiser) if clipped else denoiser)(self.x_t, self.t)

    def log_variance(self, variance):
        s, t = self.s.expand(4), self.t.expand(4)
        first = first_log_variance(self.schedule.level(np.array([1, 0])))
        return reverse_log_variance(variance, s, t, self.prediction(False, variance).aux, first)

    def bits(self, variance, clipped):
        first = first_log_variance(self.schedule.level(np.array([1, 0])))
        prediction = self.prediction(clipped, variance)
        return losses.bound_term(
            prediction, self.x_start, self.x_t, self.s, self.t, variance, first
        )


@pytest.fixture(params=TABLES)
def table(request):
    return request.param


@pytest.fixture(params=PARAMETERIZATIONS)
def case(request, reference, table):
    return Case(reference("pointwise.npz"), table, request.param)


def _peers_decoder(x, mean, log_scale):
    """Nats of the peer's decoder: a tanh in place of the normal CDF, no probability below 1e-12,
    all in its float32."""
    x, mean, log_scale = (np.float32(a) for a in (x, mean, log_scale))
    cdf = lambda z: (
        np.float32(0.5)
        * (1 + np.tanh(np.float32(np.sqrt(2.0 / np.pi)) * (z + np.float32(0.044715) * z**3)))
    )
    inverse = np.exp(-log_scale)
    upper, lower = (
        cdf(inverse * (x - mean + np.float32(1 / 255))),
        cdf(inverse * (x - mean - np.float32(1 / 255))),
    )
    probability = np.where(x < -0.999, upper, np.where(x > 0.999, 1 - lower, upper - lower))
    return np.log(np.maximum(probability, np.float32(1e-12)))


def _exact_decoder(x, mean, log_scale):
    """Nats of the decoder in float64, each bin from the tail that its two edges share."""
    scale = np.exp(log_scale)
    lower, upper = (x - mean - 1 / 255) / scale, (x - mean + 1 / 255) / scale
    mirrored = lower > 0
    a, b = np.where(mirrored, -upper, lower), np.where(mirrored, -lower, upper)
    a = np.where((x < -0.999) & ~mirrored | (x > 0.999) & mirrored, -np.inf, a)
    b = np.where((x < -0.999) & mirrored | (x > 0.999) & ~mirrored, np.inf, b)
    log_b = scipy.special.log_ndtr(b)
    return log_b + np.log(-np.expm1(scipy.special.log_ndtr(a) - log_b))


def _bits(nats):
    return np.mean(nats, axis=(1, 2, 3)) / np.log(2.0)


@pytest.mark.parametrize("clipped", [False, True], ids=["raw", "clipped"])
def test_x0_and_the_mean_are_the_peers(case, clipped):
    suffix = "_clipped" if clipped else ""
    prediction = case.prediction(clipped)
    _close(prediction.x0, case.expected(f"p_pred_xstart{suffix}"))
    if case.mean == "PREVIOUS_X" and clipped:
        return  # the peer leaves its mean as the network gave it; ours follows from the clipped x0
    mean, _ = q_posterior(prediction.x0, case.x_t, case.s, case.t)
    _close(mean, case.expected(f"p_mean{suffix}"))


def test_the_marginal_and_the_posterior_are_the_peers(reference, table):
    case = Case(reference("pointwise.npz"), table, "EPSILON")
    _close(case.x_t, case.peer["x_t"], 1e-6)
    mean, _ = q_posterior(case.x_start, case.x_t, case.s, case.t)
    _close(mean, case.peer["q_posterior_mean"])
    _close(
        case.log_variance("fixed_small").ravel(), case.peer["q_posterior_log_variance"]
    )  # at t = 0, too: `first`


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_reverse_variance_is_the_peers(reference, table, variance):
    case = Case(reference("pointwise.npz"), table, "EPSILON")
    found = np.squeeze(case.log_variance(variance))
    _close(found, case.peer[f"{variance.upper()}/p_log_variance"])


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_bounds_terms_are_the_peers(case, variance):
    for clipped in (
        [False] if case.mean == "PREVIOUS_X" else [False, True]
    ):  # whose mean the peer does not clip
        _check_terms(case, variance, clipped)


def _check_terms(case, variance, clipped):
    found = case.bits(variance, clipped)
    expected = case.expected(f"{variance.upper()}/vb_bits{'_clipped' if clipped else ''}")
    assert case.peer["t"][0] == 0
    np.testing.assert_allclose(found[1:], expected[1:], **BITS)
    # t = 0, where the peer's decoder is an approximation: with it, our mean and variance give the
    # peer's number, and with the exact one ours
    prediction = case.prediction(clipped, variance)
    x0, mean = np.float64(case.x_start[:1]), np.float64(prediction.x0[:1])
    half = np.broadcast_to(0.5 * np.float64(case.log_variance(variance)), case.x_t.shape)[:1]
    np.testing.assert_allclose(-_bits(_peers_decoder(x0, mean, half)), expected[:1], **BITS)
    _close(found[:1], -_bits(_exact_decoder(x0, mean, half)))


@pytest.mark.parametrize("variance", VARIANCES)
def test_vlb_is_t_times_the_term_of_the_peer(case, variance):
    network = lambda *args: case.network(*args, variance)
    arguments = network, case.x_start, case.noise, case.t
    plain = losses.vlb(case.parameterization, case.schedule, variance)(*arguments)
    scaled = losses.vlb(case.parameterization, case.schedule, variance, scaled=True)(*arguments)
    np.testing.assert_allclose(plain[1:], case.expected(f"{variance.upper()}/vb_bits")[1:], **BITS)
    _close(scaled[1:], case.expected(f"{variance.upper()}/rescaled_kl")[1:])
    np.testing.assert_allclose(scaled, case.num_steps * np.asarray(plain), rtol=1e-6)
    np.testing.assert_allclose(
        plain[:1], case.bits(variance, False)[:1], rtol=1e-6
    )  # held to the peer above


def test_l_simple_is_the_peers(case):
    found = losses.denoising(case.parameterization)(case.network, case.x_start, case.noise, case.t)
    _close(found, case.expected("training_mse"))


def test_l_hybrid_is_the_peers_rescaled_loss(case):
    found = losses.hybrid(case.parameterization, case.schedule)(
        case.network, case.x_start, case.noise, case.t
    )
    _close(found[1:], case.expected("LEARNED_RANGE/rescaled_mse")[1:])
    # at t = 0 the peer's number holds its decoder: exchange its term for ours
    theirs, ours = case.expected("LEARNED_RANGE/vb_bits")[0], case.bits("learned_range", False)[0]
    expected = case.expected("LEARNED_RANGE/rescaled_mse")[0] + case.num_steps / 1000 * (
        ours - theirs
    )
    _close(found[0], expected)


def test_the_prior_term_is_the_peers(reference, table):
    case = Case(reference("pointwise.npz"), table, "EPSILON")
    found = likelihood.prior_bits(case.x_start, case.schedule.level(case.num_steps - 1))
    np.testing.assert_allclose(found, case.peer["prior_bits"], rtol=1e-3, atol=1e-6)


def _ddim(case, after):
    """The closed form in float64 from t to the level `after`, and what rounding 1 - alphas_cumprod
    to float32 does to it.

    The peer takes the root of that number, off by up to 3e-8, to scale an eps that clipping x0 may
    have made large: at the first steps of a fine table its result is off by up to 2e-3, and it is
    the peer that is off."""
    column = lambda a: np.reshape(np.float64(a), (-1, 1, 1, 1))
    x0 = np.float64(case.expected("p_pred_xstart_clipped"))
    eps = (np.float64(case.peer["x_t"]) - column(case.t.alpha) * x0) / column(case.t.sigma)
    rounding = 3e-8 * np.abs(eps) / np.maximum(2.0 * column(after.sigma), 1e-30)
    return column(after.alpha) * x0 + column(after.sigma) * eps, np.where(
        column(after.sigma) == 0.0, 0.0, rounding
    )


def test_a_ddim_step_is_the_peers_at_every_t(case):
    # at t = 0 too, where `sample` takes no step: the step to clean data is the denoiser's x0
    denoiser = lambda x, level: case.prediction(True)
    x, _ = samplers.ddim().step(None, denoiser, case.x_t, (), case.t, case.s)
    exact, rounding = _ddim(case, case.s)
    _close(x, exact, 1e-5)
    _close(x, case.expected("ddim_eta0"), rounding=rounding)


def test_a_step_of_the_inversion_is_the_peers(case):
    t = np.asarray(case.t.t)
    table = case.schedule.level(np.arange(case.num_steps))
    # the peer's level after the last is pure noise
    after = Level(t + 1, np.append(table.alpha[1:], 0.0)[t], np.append(table.sigma[1:], 1.0)[t])
    denoiser = lambda x, level: case.prediction(True)
    grid = Level(
        *(
            jnp.stack([noisier, level]).reshape(2, -1, 1, 1, 1)
            for noisier, level in zip(after, case.t, strict=True)
        )
    )
    x = samplers.invert(denoiser, case.x_t, grid)
    exact, rounding = _ddim(case, after)
    _close(x, exact, 1e-5)
    _close(x, case.expected("ddim_reverse"), rounding=rounding)
