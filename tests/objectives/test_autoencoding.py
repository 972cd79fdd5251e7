"""The objective of autoencoders, of networks so small that every number is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import image_batch, problem

from diffusion_jax.core import weightings
from diffusion_jax.core.latents import Latents
from diffusion_jax.core.noise import example_keys, fold_in
from diffusion_jax.core.quantization import Counts
from diffusion_jax.objectives import Context, Perceptual, autoencoding
from diffusion_jax.objectives.adversarial import adaptive_weight, kernel_gradients, linearised
from diffusion_jax.training.optimizers import of_two
from diffusion_jax.training.state import init_state, warmed_up_ema
from diffusion_jax.training.step import make_train_step

SIZE = 8
BATCH = image_batch(SIZE)
X = np.float64(BATCH["image"]) / 127.5 - 1
PERCEPTUAL = Perceptual(
    lambda file: {"scale": jnp.float32(3.0)},
    lambda weights, x, y: weights["scale"] * jnp.square((x - y).mean((1, 2, 3))),
)


def convolved(kernel, h):
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=axes)


class Network:
    """Images [B, 4, 4, 1] to latents [B, 4, 4, 2] by one number a channel; a 3 x 3 convolution
    back; a critic of one kernel."""

    def method(self, name):
        return getattr(self, name)

    def encode(self, params, x):
        return x * params["encoder"]

    def decode(self, params, z, last=False):
        if "codebook" in params:
            distance = jnp.square(z[..., None, :] - params["codebook"]).sum(-1)
            z = z + jax.lax.stop_gradient(params["codebook"][distance.argmin(-1)] - z)
        y = convolved(params["decoder"], z)
        return (y, z) if last else y

    def judge(self, params, x):
        return convolved(params["critic"], x)


def parameters(latents):
    rng = np.random.default_rng(3)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    moments = 4 if latents.regularizer == "kl" else 2
    params = {"encoder": draw(moments), "decoder": 0.3 * draw(3, 3, 2, 1)}
    far = jnp.float32([[1.0, 1.0]] * 4 + [[40.0, 0.0]])  # the last code is nearest to nothing
    params |= {"codebook": draw(5, 2) * far} if latents.regularizer == "vq" else {}
    return params | ({"critic": draw(3, 3, 1, 1)} if latents.critic else {})


def made(regularizer, critic=False, **settings):
    codes, levels = {"vq": (5, ()), "fsq": (15, (3, 5))}.get(regularizer, (0, ()))
    latents = Latents(regularizer, 2, codes, levels, critic)
    shape = (4, 4, 3) if "perceptual_file" in settings else (4, 4, 1)
    return autoencoding(problem(shape), latents, PERCEPTUAL, **settings), parameters(latents)


def context(step=0, training=True):
    keys = example_keys(jax.random.key(3), np.arange(SIZE))
    return Context(Network(), None, step, keys, jnp.zeros(SIZE), jnp.ones(SIZE), training=training)


def found(objective, params, aux=None, **about):
    aux = objective.init(jax.random.key(0), params) if aux is None else aux
    return objective.loss(params, aux, context(**about), BATCH)


def back(params, z):
    """The decoder in NumPy's float64."""
    kernel, z = np.float64(params["decoder"]), np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [(i, j) for i in range(3) for j in range(3)]
    return sum(z[:, i : i + 4, j : j + 4] @ kernel[i, j] for i, j in windows)


def test_the_loss_of_normal_latents_is_the_papers():
    objective, params = made("kl", l1_weight=0.5, l2_weight=2.0, kl_weight=0.01)
    moments = X * np.float64(params["encoder"])
    mean, log_variance = moments[..., :2], moments[..., 2:]
    keys = fold_in(context().keys, 0)
    noise = np.stack([np.asarray(jax.random.normal(key, (4, 4, 2))) for key in keys])
    y = back(params, mean + np.exp(0.5 * log_variance) * noise)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum((1, 2, 3))
    l1, l2 = np.abs(y - X).mean((1, 2, 3)), np.square(y - X).mean((1, 2, 3))
    losses, report = found(objective, params)
    np.testing.assert_allclose(losses, 0.5 * l1 + 2 * l2 + 0.01 * kl / 16, rtol=1e-5)
    for name, value in {"l1": l1, "l2": l2, "kl": kl}.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-5)
    drawn = objective.reconstruct(Network(), params, jnp.float32(X))
    np.testing.assert_allclose(drawn, back(params, mean), rtol=1e-4, atol=1e-5)


def test_a_perceptual_distance_needs_a_file_and_adds_to_the_error():
    plain, params = made("none")
    seen, _ = made("none", perceptual_file="a.pt", perceptual_weight=0.5)
    y = back(params, X * np.float64(params["encoder"]))
    expected = found(plain, params)[0] + 0.5 * 3 * (X - y).mean((1, 2, 3)) ** 2
    losses, report = found(seen, params)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert "perceptual" in report and "perceptual" not in found(plain, params)[1]


def quantised(params):
    z, codebook = X * np.float64(params["encoder"]), np.float64(params["codebook"])
    index = np.square(z[..., None, :] - codebook).sum(-1).argmin(-1)
    return z, codebook, index


@pytest.mark.parametrize("codebook", ["ema", "loss"])
def test_the_loss_of_codes_and_its_gradients_are_those_by_hand(codebook):
    objective, params = made("vq", codebook=codebook, commitment=0.5, l1_weight=0.0)
    z, codes, index = quantised(params)
    y = back(params, codes[index])
    distance = np.square(z - codes[index]).mean((1, 2, 3))
    own = distance if codebook == "loss" else 0.0
    losses, _ = found(objective, params)
    expected = np.square(y - X).mean((1, 2, 3)) + 0.5 * distance + own
    np.testing.assert_allclose(losses, expected, rtol=1e-5)

    gradient = jax.grad(lambda params: found(objective, params)[0].mean())(params)
    by_hand = np.zeros((5, 2))  # of the codebook's own loss, mean((sg[z] - e)^2), in e
    for vector, i in zip(z.reshape(-1, 2), index.reshape(-1), strict=True):
        by_hand[i] += 2 * (codes[i] - vector) / z.size
    by_hand *= codebook == "loss"
    np.testing.assert_allclose(gradient["codebook"], by_hand, rtol=1e-4, atol=1e-7)
    assert float(jnp.abs(gradient["encoder"]).max()) > 1e-3  # straight through the codes


def test_codes_of_averages_follow_their_vectors_after_the_optimizer():
    """One step against a loop: sizes from 1, code = sum / size, revived where the size is small."""
    objective, params = made("vq", decay=0.5, revive=0.6)
    assert objective.after is not None
    aux = objective.init(jax.random.key(0), params)
    _, report = found(objective, params, aux)
    z, codes, index = quantised(params)
    vectors, index = z.reshape(-1, 2), index.reshape(-1)
    sizes = 0.5 + 0.5 * np.bincount(index, minlength=5)
    sums = 0.5 * codes + 0.5 * np.stack([vectors[index == k].sum(0) for k in range(5)])
    after = np.asarray(objective.after(params, aux, report)["codebook"])
    counts = objective.update(aux, None, report)["codes"]["counts"]
    dead = sizes < 0.6
    assert 0 < dead.sum() < 5
    np.testing.assert_allclose(after[~dead], (sums / sizes[:, None])[~dead], rtol=1e-4)
    np.testing.assert_allclose(counts.sizes, np.where(dead, 1.0, sizes), rtol=1e-6)
    frozen = {name: tree for name, tree in params.items() if name != "codebook"}
    assert objective.after(frozen, aux, report) is frozen
    for code in after[dead]:
        assert np.abs(vectors - code).max(1).min() < 1e-4
    again = objective.update(aux, None, report)["codes"]
    jax.tree.map(np.testing.assert_array_equal, again["counts"], counts)
    assert (again["revival"] != aux["codes"]["revival"]).any()


def test_codes_learned_by_loss_are_left_to_the_optimizer_but_for_dead_ones():
    objective, params = made("vq", codebook="loss", decay=0.5, revive=0.6)
    aux = objective.init(jax.random.key(0), params)
    _, report = found(objective, params, aux)
    after = objective.after(params, aux, report)
    alive = np.unique(np.asarray(report["codes"]))
    np.testing.assert_array_equal(after["codebook"][alive], params["codebook"][alive])
    assert (np.asarray(after["codebook"]) != np.asarray(params["codebook"])).any()
    assert made("vq", codebook="loss", revive=0.0)[0].after is None
    assert made("fsq")[0].after is None and made("kl")[0].after is None


def test_scalar_codes_are_counted():
    objective, params = made("fsq", decay=0.5)
    aux = objective.init(jax.random.key(0), params)
    _, report = found(objective, params, aux)
    sizes = objective.update(aux, None, report)["codes"]["counts"].sizes
    count = np.bincount(np.asarray(report["codes"]).reshape(-1), minlength=15)
    np.testing.assert_allclose(sizes, 0.5 + 0.5 * count)
    np.testing.assert_allclose(report["perplexity"], 15.0, rtol=1e-5)  # sizes start at 1


def test_critic_and_network_learn_nothing_of_each_others_loss():
    objective, params = made("none", critic=True, critic_start=0, adaptive=False, critic_weight=0.7)
    plain, _ = made("none")
    loss = lambda objective, params, **about: found(objective, params, **about)[0].mean()
    both = jax.grad(lambda params: loss(objective, params))(params)
    judge = lambda params, x: convolved(params["critic"], x).mean((1, 2, 3))
    y = lambda params: Network().decode(params, Network().encode(params, jnp.float32(X)))

    def network(params):  # with the critic held
        held = {"critic": jax.lax.stop_gradient(params["critic"])}
        return loss(plain, params) - 0.7 * judge(held, y(params)).mean()

    def critic(own):
        said = lambda x: convolved(own, x)
        real, fake = said(jnp.float32(X)), said(y(params))
        return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())

    expected = jax.grad(network)(params)
    for name in ("encoder", "decoder"):
        np.testing.assert_allclose(both[name], expected[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(expected["critic"], 0.0)
    of_critic = jax.grad(critic)(params["critic"])
    np.testing.assert_allclose(both["critic"], of_critic, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(of_critic).max()) > 1e-3
    held_out = loss(objective, params, training=False)
    np.testing.assert_allclose(held_out, loss(plain, params), rtol=1e-6)


def test_before_its_step_the_critic_neither_learns_nor_counts():
    objective, params = made("none", critic=True, critic_start=5, adaptive=False)
    plain, _ = made("none")
    gradient = lambda step: jax.grad(lambda p: found(objective, p, step=step)[0].mean())(params)
    np.testing.assert_allclose(found(objective, params, step=4)[0], found(plain, params)[0])
    assert not jnp.any(gradient(4)["critic"]) and jnp.any(gradient(5)["critic"])
    assert (found(objective, params, step=5)[0] != found(plain, params)[0]).all()


def test_the_adaptive_weight_is_the_ratio_of_gradients_by_finite_differences():
    objective, params = made("none", critic=True, critic_start=0, l1_weight=0.0, critic_weight=0.3)
    aux = objective.init(jax.random.key(0), params)
    losses, report = found(objective, params, aux)
    z, critic = X * np.float64(params["encoder"]), np.float64(params["critic"])
    kernel = np.float64(params["decoder"])
    error = lambda k: np.square(back({"decoder": k}, z) - X).mean()
    term = lambda k: -back({"decoder": critic}, back({"decoder": k}, z)).mean()

    def norm(f):
        steps = 1e-5 * np.eye(kernel.size).reshape(-1, *kernel.shape)
        slopes = [(f(kernel + step) - f(kernel - step)) / 2e-5 for step in steps]
        return np.sqrt(np.square(slopes).sum())

    weight = objective.update(aux, None, report)["adaptive"]
    np.testing.assert_allclose(weight, norm(error) / norm(term), rtol=1e-4)
    # the weight of the step before: 0 at first, then this one
    more = found(objective, params, aux | {"adaptive": weight})[0] - losses
    said = back({"decoder": critic}, back(params, z)).mean((1, 2, 3))
    np.testing.assert_allclose(more, -0.3 * weight * said, rtol=1e-3, atol=1e-5)


def test_the_adaptive_weight_is_bounded():
    one = jnp.ones((2, 3))
    assert float(adaptive_weight(one, 0 * one)) == 1e4
    assert float(adaptive_weight(0 * one, one)) == 0.0


def test_a_linearised_function_has_its_value_and_its_gradient_alone():
    y, a = jnp.float32([[0.3, -2.0], [1.0, 0.5]]), jnp.float32(3.0)
    function = lambda a, y: a * jnp.sin(y).sum(axis=1)
    of = lambda a, y: linearised(lambda y: function(a, y), y)[0].sum()
    np.testing.assert_allclose(of(a, y), function(a, y).sum(), rtol=1e-6)
    gradients = jax.grad(of, (0, 1))(a, y)
    np.testing.assert_allclose(gradients[1], 3 * np.cos(y), rtol=1e-6)
    assert gradients[0] == 0.0
    h = jnp.float32(np.random.default_rng(0).standard_normal((2, 4, 5, 3)))
    kernel, slope = jnp.ones((3, 3, 3, 2)), jnp.cos(h[..., :2])
    one = lambda i: jax.grad(lambda k: jnp.sum(slope[i] * convolved(k, h[i : i + 1])[0]))(kernel)
    expected = jnp.stack([one(0), one(1)])
    np.testing.assert_allclose(kernel_gradients(h, slope), expected, rtol=1e-4, atol=1e-5)


def stepped(objective, params, **options):
    optimizer = of_two(optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)))
    step = make_train_step(objective, Network(), optimizer, warmed_up_ema(0.9), **options)
    state = init_state(params, optimizer, aux=objective.init(jax.random.key(7), params))
    return step, state


@pytest.mark.parametrize("regularizer", ["kl", "vq"])
def test_parts_and_devices_change_no_number_of_a_step(regularizer):
    objective, params = made(regularizer, critic=True, critic_start=0, decay=0.5, revive=0.6)
    key = jax.random.key(5)
    step, state = stepped(objective, params)
    state = state.replace(aux=state.aux | {"adaptive": jnp.float32(0.7)})
    after, metrics = jax.jit(step)(state, key, BATCH)
    in_parts, of_parts = jax.jit(stepped(objective, params, accumulation=4)[0])(state, key, BATCH)
    of_device = stepped(objective, params, axis_name="batch")[0]
    on_axis = jax.vmap(of_device, (None, None, 0), 0, axis_name="batch")
    cut = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), BATCH)
    on_third, of_third = jax.tree.map(lambda a: a[2], jax.jit(on_axis)(state, key, cut))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6)
    for found, said in ((in_parts, of_parts), (on_third, of_third)):
        jax.tree.map(close, found, after)
        jax.tree.map(close, said, metrics)
    assert {"l1", "l2", "critic", "real", "fake", "adaptive"} <= metrics.keys()
    assert not {"z", "codes", "error_slope", "critic_slope"} & metrics.keys()
    assert regularizer == "kl" or {"perplexity", "usage"} <= metrics.keys()


def test_the_critics_gradients_are_clipped_apart():
    params = {"critic": jnp.float32([30.0, 40.0]), "decoder": jnp.float32([0.03, 0.04])}
    optimizer = of_two(optax.clip_by_global_norm(0.1))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["critic"], [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose(updates["decoder"], [0.03, 0.04], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"l1_weight": 0.0, "l2_weight": 0.0}, "l1_weight [+] l2_weight must be above 0"),
        ({"kl_weight": -1.0}, "kl_weight must be at least 0"),
        ({"decay": 1.0}, "decay must be at least 0 and below 1"),
        ({"critic_start": -1}, "critic_start must be at least 0"),
        ({"perceptual_file": "a.pt"}, "images of 3 channels"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        autoencoding(problem(), Latents("kl", 2), PERCEPTUAL, **settings)


def test_a_weighting_by_noise_level_is_refused():
    weighted = problem(weighting=weightings.min_snr())
    with pytest.raises(ValueError, match="not of autoencoding"):
        autoencoding(weighted, Latents("kl", 2), PERCEPTUAL)


def test_counts_are_arrays_of_the_state():
    objective, params = made("vq")
    aux = objective.init(jax.random.key(0), params)
    assert isinstance(aux["codes"]["counts"], Counts)
    np.testing.assert_array_equal(aux["codes"]["counts"].sizes, np.ones(5))
