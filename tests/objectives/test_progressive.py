"""Progressive and guidance distillation against loops in float64 and teachers in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import image_batch, problem

from diffusion_jax.conditioning import CONDITIONERS, joined, label
from diffusion_jax.conditioning.guidance_weight import NAME, features, weights
from diffusion_jax.core import grids, predictions, schedules, weightings
from diffusion_jax.core.mixtures import Mixture
from diffusion_jax.core.noise import example_keys
from diffusion_jax.core.types import Level
from diffusion_jax.data.spec import Declared
from diffusion_jax.denoisers import with_eps
from diffusion_jax.devices.flops import count
from diffusion_jax.objectives import OBJECTIVES, Context, denoising, noised
from diffusion_jax.objectives.progressive import hops, target
from diffusion_jax.samplers import ddim, sample
from diffusion_jax.training.state import init_state, warmed_up_ema
from diffusion_jax.training.step import make_train_step

progressive, distilled_guidance = OBJECTIVES["progressive"], OBJECTIVES["distilled_guidance"]
guidance_weight = CONDITIONERS["guidance_weight"]
TABLE, STEPS, SIZE = schedules.cosine(8), 4, 12
BATCH = image_batch(SIZE)
KEYS = example_keys(jax.random.key(3), np.arange(SIZE))
MIXTURE = Mixture(
    np.array([0.2, 0.5, 0.3]),
    np.array([[-1.0, 0.3], [0.5, 0.5], [0.2, -0.8]]),
    np.array([0.3, 0.1, 0.2]),
)
SCHEDULES = [schedules.cosine(1000), schedules.rectified_flow(), schedules.ve(), schedules.edm()]


def linear(params, x, t, cond, dropout_key=None):
    """A network that multiplies x by a number of its t's."""
    return params["k"][t.astype(int)][:, None, None, None] * x


def of_gaussian(deviation=0.6):
    """k [T] of the exact denoiser of N(0, deviation^2), float64."""
    level = TABLE.level(np.arange(8))
    alpha, sigma = (np.asarray(a, np.float64) for a in (level.alpha, level.sigma))
    return alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2), alpha, sigma


def exact_student(c, alpha, sigma):
    """k [T] of the student of `STEPS` steps: two DDIM steps of x0 = c x as one, written out."""
    k = c.copy()
    for t in (1, 3, 5, 7):
        middle, s = t - 1, t - 2
        z = 1.0
        x = c[t] * z
        z_m = alpha[middle] * x + sigma[middle] * (z - alpha[t] * x) / sigma[t]
        x = c[middle] * z_m
        alpha_s, sigma_s = (alpha[s], sigma[s]) if s >= 0 else (1.0, 0.0)
        z_s = alpha_s * x + sigma_s * (z_m - alpha[middle] * x) / sigma[middle]
        k[t] = (z_s - sigma_s / sigma[t] * z) / (alpha_s - sigma_s / sigma[t] * alpha[t])
    return k


def context(apply_fn, t):
    return Context(apply_fn, {}, 0, KEYS, jnp.asarray(t), jnp.ones(SIZE))


def params_of(k):
    return {"k": jnp.asarray(k, jnp.float32)}


def of_table(**more):
    return problem(schedule=TABLE, parameterization=predictions.x0(), **more)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 5, 16])
def test_the_levels_are_those_of_sampling(schedule, steps):
    found, grid = hops(schedule, steps), grids.trailing(schedule, steps)
    twice = grids.trailing(schedule, 2 * steps)
    for mine, of_student, of_teacher in zip(found.t, grid, twice, strict=True):
        np.testing.assert_array_equal(mine[::-1], of_student)
        np.testing.assert_array_equal(mine[::-1], of_teacher[::2])
    np.testing.assert_array_equal(found.middle.t[::-1], twice.t[1::2])
    assert found.share[0] == 1.0 and (found.share > 0).all()


def test_a_table_has_students_of_up_to_its_indices():
    for steps in (512, 1000):
        found = hops(schedules.cosine(1000), steps)
        assert (np.diff(found.t.t) > 0).all() and (found.middle.t[1:] > found.t.t[:-1]).all()
        assert (found.middle.t[1:] < found.t.t[1:]).all() and found.middle.t[0] == 0
        assert np.isfinite(found.share).all()
    with pytest.raises(ValueError, match="21 sampling steps asked of a table of 20"):
        hops(schedules.cosine(20), 21)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_target_is_the_papers_in_a_loop(schedule, x64):
    """Salimans & Ho 2022, algorithm 2, hop by hop, down to clean data."""
    steps, rng = 5, np.random.default_rng(0)
    found, twice = hops(schedule, steps), grids.trailing(schedule, 10)
    alpha, sigma = (np.append(np.asarray(a, np.float64), end) for a, end in
                    ((twice.alpha, 1.0), (twice.sigma, 0.0)))  # fmt: skip
    z = rng.standard_normal((steps, 2)) * np.asarray(found.t.sigma)[:, None]
    mine = target(MIXTURE.denoiser, jnp.asarray(z), found.t, found.middle, found.share)
    for i in range(steps):
        t = 2 * (steps - 1 - i)  # of the grid, whose first level is the noisiest
        x = z[i : i + 1]
        for j in (t, t + 1):
            x0 = np.asarray(MIXTURE.denoiser(x, Level(0.0, alpha[j], sigma[j])).x0)
            x = alpha[j + 1] * x0 + sigma[j + 1] * (x - alpha[j] * x0) / sigma[j]
        ratio = sigma[t + 2] / sigma[t]
        expected = (x - ratio * z[i : i + 1]) / (alpha[t + 2] - ratio * alpha[t])
        np.testing.assert_allclose(mine[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_a_student_of_that_target_takes_in_one_step_what_its_teacher_takes_in_two():
    schedule, steps = schedules.rectified_flow(), 3
    found = hops(schedule, steps)

    def student(x, level):
        i = jnp.argmin(jnp.abs(found.t.t - level.t))
        own = jax.tree.map(lambda a: jnp.full(len(x), a[i]), found)
        return with_eps(target(MIXTURE.denoiser, x, *own), x, level)

    x = jax.random.normal(jax.random.key(0), (6, 2))
    drawn = [
        sample(ddim(), denoiser, None, x, grids.trailing(schedule, count))
        for denoiser, count in ((student, steps), (MIXTURE.denoiser, 2 * steps))
    ]
    np.testing.assert_allclose(drawn[0], drawn[1], rtol=1e-4, atol=1e-5)


def test_the_loss_and_its_gradient_vanish_at_the_exact_student():
    objective, (c, *level) = progressive(of_table(), STEPS), of_gaussian()
    aux = objective.init(jax.random.key(0), params_of(c))
    given = context(linear, np.arange(SIZE) % 8)

    @jax.jit
    def found(params):
        loss = lambda params: objective.loss(params, aux, given, BATCH)[0]
        return loss(params), jax.grad(lambda params: loss(params).mean())(params)["k"]

    losses, gradient = found(params_of(exact_student(c, *level)))
    assert np.max(losses) < 1e-10 and np.max(np.abs(gradient)) < 1e-5
    losses, gradient = found(params_of(c))
    assert np.min(losses) > 1e-6 and np.max(np.abs(gradient)) > 1e-3
    np.testing.assert_array_equal(gradient[::2], 0)  # of levels that the student never meets


def test_a_linear_network_trained_by_it_becomes_the_exact_student():
    objective, (c, *level) = progressive(of_table(), STEPS), of_gaussian()
    assert objective.teacher
    optimizer, teacher = optax.adam(optax.linear_schedule(0.05, 0.0, 300)), params_of(c)
    state = init_state(teacher, optimizer, aux=objective.init(jax.random.key(0), teacher))
    step = jax.jit(make_train_step(objective, linear, optimizer, warmed_up_ema(0.99)))
    for _ in range(300):
        state, metrics = step(state, jax.random.key(1), BATCH)
    expected = exact_student(c, *level)
    assert np.max(np.abs(expected - c)) > 0.05
    np.testing.assert_allclose(state.params["k"], expected, atol=2e-4)
    assert metrics["loss"] < 1e-6
    np.testing.assert_array_equal(state.aux["teacher"]["k"], teacher["k"])


def test_the_error_is_weighed_by_the_truncated_snr_or_as_the_config_says():
    c, _, _ = of_gaussian()
    given = context(linear, np.arange(SIZE) % 8)
    found = []
    for weighting in (None, weightings.x0(), weightings.v()):
        objective = progressive(of_table(weighting=weighting), STEPS)
        aux = objective.init(jax.random.key(0), params_of(c))
        found.append(
            jax.jit(lambda aux, o=objective: o.loss(params_of(c), aux, given, BATCH)[0])(aux)
        )
    snr = np.exp(np.asarray(TABLE.level(np.arange(8) // 2 * 2 + 1).logsnr))[np.arange(SIZE) % 8]
    np.testing.assert_allclose(found[0], found[1] * np.maximum(snr, 1), rtol=1e-4)
    np.testing.assert_allclose(found[2], found[1] * (snr + 1), rtol=1e-4)


def test_a_step_costs_three_forward_passes_and_one_backward():
    def apply_fn(params, x, t, cond, dropout_key=None):
        flat = jnp.tanh(x.reshape(len(x), -1) @ params["w"]) @ params["w"]
        return flat.reshape(x.shape)

    params, given = {"w": jnp.ones((16, 16))}, context(apply_fn, np.arange(SIZE) % 8)
    forward = count(jax.make_jaxpr(lambda x: apply_fn(params, x, None, None))(BATCH["image"]))

    def cost(objective):
        aux = objective.init(jax.random.key(0), params)
        loss = lambda params: objective.loss(params, aux, given, BATCH)[0].mean()
        return count(jax.make_jaxpr(jax.value_and_grad(loss))(params)).flops

    one = cost(denoising(of_table()))  # a forward and a backward pass
    assert cost(progressive(of_table(), STEPS)) == one + 2 * forward.flops
    labels = joined([label(Declared((4, 4, 1), 10), 0.5), guidance_weight(0.0, 2.0)])
    guided = of_table(conditioner=labels)
    assert cost(progressive(guided, STEPS, 1.0)) == one + 4 * forward.flops
    assert cost(distilled_guidance(guided)) == one + 2 * forward.flops


LABELS = label(Declared((4, 4, 1), 10), 0.5)
TOLD = of_table(conditioner=joined([LABELS, guidance_weight(1.0, 3.0)]))


def by_label(params, x, t, cond, dropout_key=None):
    """A network that multiplies x by a number of the label's, the eleventh for none."""
    return params["a"][cond["label"]][:, None, None, None] * x


def test_a_student_is_told_the_weight_by_which_its_teacher_is_guided():
    rng, objective = np.random.default_rng(0), distilled_guidance(TOLD)
    mine, theirs = ({"a": jnp.asarray(rng.uniform(0.2, 1, 11), jnp.float32)} for _ in range(2))
    given = context(by_label, np.arange(SIZE) % 8)
    aux = objective.init(jax.random.key(0), theirs)
    losses = jax.jit(lambda aux: objective.loss(mine, aux, given, BATCH)[0])(aux)
    example = jax.jit(lambda: noised(TOLD, given, BATCH))()
    told, w = np.asarray(example.cond["label"]), np.asarray(weights(example.cond[NAME]), np.float64)
    assert 1.0 <= w.min() < 1.7 and 2.3 < w.max() <= 3.0
    alpha, sigma = (np.asarray(a, np.float64)[:, None, None, None] for a in example.level[1:])
    z = alpha * np.asarray(example.x0, np.float64) + sigma * np.asarray(example.eps, np.float64)
    a, b = (np.asarray(p["a"], np.float64) for p in (mine, theirs))
    off = a[told] - ((1 + w) * b[told] - w * b[10])
    snr = (alpha / sigma).ravel() ** 2
    expected = np.maximum(snr, 1) * off**2 * np.square(z).mean((1, 2, 3))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_a_fixed_weight_guides_the_teacher_of_a_halving():
    """With one step, whose teacher takes two through its middle, t = 3 of 8."""
    theirs, w = {"a": jnp.linspace(0.2, 0.9, 11)}, 1.5
    objective = progressive(of_table(conditioner=LABELS), 1, w)
    given = context(by_label, np.zeros(SIZE, int))
    aux = objective.init(jax.random.key(0), theirs)
    _, report = jax.jit(lambda aux: objective.loss(theirs, aux, given, BATCH))(aux)
    example = jax.jit(lambda: noised(of_table(conditioner=LABELS), given, BATCH))()
    a, told = np.asarray(theirs["a"], np.float64), np.asarray(example.cond["label"])
    k = (1 + w) * a[told] - w * a[10]
    alpha, sigma = (np.asarray(one, np.float64) for one in TABLE.level(np.array([3, 7]))[1:])
    z = alpha[1] * np.asarray(example.x0) + sigma[1] * np.asarray(example.eps)
    middle = alpha[0] * k + sigma[0] * (1 - alpha[1] * k) / sigma[1]
    expected = (a[told] - k * middle) ** 2 * np.square(z).mean((1, 2, 3))
    np.testing.assert_allclose(report["x0_error"], expected, rtol=1e-4)


def test_the_features_of_no_weight_are_zeros_and_a_weight_can_be_read_from_its_own():
    w = np.array([0.0, 0.5, 3.0])
    np.testing.assert_allclose(weights(features(w)), w)
    found = np.asarray(features(w))
    np.testing.assert_array_equal(found[0], 0)
    np.testing.assert_allclose(found[1:, 1], np.sin(w[1:]), rtol=1e-5)
    np.testing.assert_allclose(found[1:, -1], 1 - np.cos(w[1:] / 8), rtol=1e-3)
    one = guidance_weight(1.0, 3.0)
    assert one.sample is not None and one.sample(None, {"label": w}) == {}
    np.testing.assert_array_equal(one.sample(None, {NAME: w})[NAME], found)
    np.testing.assert_array_equal(one.train(None, BATCH)[1][NAME], 0)


def test_what_cannot_be_distilled_is_refused():
    with pytest.raises(ValueError, match=r"diffusion\.prediction=v and config\.training\.init"):
        progressive(problem(schedule=schedules.cosine(1000)))
    for schedule in (schedules.cosine(1000), schedules.rectified_flow()):
        progressive(problem(schedule=schedule, parameterization=predictions.v()))
    progressive(problem(schedule=schedules.edm(), parameterization=predictions.edm()))
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        progressive(of_table(), 0)
    with pytest.raises(ValueError, match="one whose dropout is above 0"):
        progressive(of_table(), 4, 1.0)
    with pytest.raises(ValueError, match=r"add guidance_weight to config\.conditioning"):
        distilled_guidance(of_table())
    with pytest.raises(ValueError, match="one whose dropout is above 0"):
        distilled_guidance(of_table(conditioner=guidance_weight()))
    with pytest.raises(ValueError, match="high must be at least 2, not 1"):
        guidance_weight(2.0, 1.0)
