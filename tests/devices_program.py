"""Run by test_parallel.py with eight virtual devices: the pmapped step against the plain one, a
U-Net's gradients on a mesh against those on one device, and examples shared out."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from problems import problem  # noqa: E402

from diffusion_jax.conditioning import label  # noqa: E402
from diffusion_jax.core import predictions, schedules, timesteps  # noqa: E402
from diffusion_jax.core.errors import UserError  # noqa: E402
from diffusion_jax.data.spec import Declared  # noqa: E402
from diffusion_jax.devices.parallel import (  # noqa: E402
    AXIS,
    check_batch,
    layout,
    make_take_steps,
    map_examples,
    map_pieces,
    place,
    share_out,
)
from diffusion_jax.models.unet import UNet  # noqa: E402
from diffusion_jax.objectives import denoising  # noqa: E402
from diffusion_jax.training.state import init_state, warmed_up_ema  # noqa: E402
from diffusion_jax.training.step import make_train_step  # noqa: E402

assert jax.device_count() == 8
schedule = schedules.cosine(4)
distribution = timesteps.second_moment(
    schedule
)  # its history is full within the four steps, and used
rng = np.random.default_rng(0)
batches = [
    {"image": rng.integers(0, 256, (16, 4, 4, 1), np.uint8), "label": rng.integers(0, 10, 16)}
    for _ in range(4)
]


def apply_fn(params, x, t, cond, dropout_key=None):
    h = jnp.tanh(
        jax.lax.conv(x.transpose(0, 3, 1, 2), params["in"], (1, 1), "SAME")
        + params["label"][cond["label"]][..., None, None]
    )
    return jax.lax.conv(h, params["out"], (1, 1), "SAME").transpose(0, 2, 3, 1)


objective = denoising(
    problem(
        schedule=schedule,
        distribution=distribution,
        parameterization=predictions.v(),
        conditioner=label(Declared((4, 4, 1), 10), 0.5),
    )
)


def make(**options):
    return make_train_step(objective, apply_fn, optimizer, warmed_up_ema(0.99), **options)


# not Adam: its division makes rounding visible wherever a gradient is near 0
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
params = {
    "in": rng.normal(size=(6, 1, 3, 3)),
    "out": rng.normal(size=(1, 6, 3, 3)),
    "label": rng.normal(size=(11, 6)),
}
fresh = lambda: jax.tree.map(
    lambda a: jnp.asarray(a, jnp.float32), params
)  # the pmapped step donates them
key = jax.random.key(7)

begin = lambda: init_state(fresh(), optimizer, aux=objective.init(None, params))
plain, step = begin(), jax.jit(make())
for batch in batches:
    plain, plain_metrics = step(plain, key, batch)
for steps_per_call, accumulation in ((1, 1), (2, 1), (1, 2)):
    run = make_take_steps(
        layout(), make(axis_name=AXIS, accumulation=accumulation), None, steps_per_call
    )
    state = place(begin())
    for i in range(0, 4, steps_per_call):
        state, metrics = run(
            state, key, jax.tree.map(lambda *a: np.stack(a), *batches[i : i + steps_per_call])
        )
    for a, b in zip(
        jax.tree.leaves(plain.ema_params), jax.tree.leaves(state.ema_params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    history, expected = state.aux["timesteps"], plain.aux["timesteps"]
    np.testing.assert_allclose(expected["losses"], history["losses"], rtol=1e-4)
    np.testing.assert_array_equal(expected["counts"], history["counts"])
    for name, value in plain_metrics.items():
        np.testing.assert_allclose(value, metrics[name][-1], rtol=1e-5, err_msg=name)

# the network that the programs train, partitioned by XLA: parameters whole or cut, examples apart
unet = UNet(
    out_channels=1, channels=16, channel_mult=(1,), blocks=1, attention_factors=(1,), heads=2
)
x, t = rng.normal(size=(8, 8, 8, 1)).astype(np.float32), np.arange(8, dtype=np.float32)
shapes = jax.eval_shape(lambda key: unet.init(key, x, t), key)
weights = jax.tree.map(lambda a: 0.1 * rng.standard_normal(a.shape, np.float32), shapes)
mesh = layout("mesh", 2)


def gradient(gathered):
    loss = lambda weights, x, t: jnp.mean(unet.apply(gathered(weights), x, t) ** 2)
    return jax.jit(jax.grad(loss))


cut = jax.tree.map(lambda a: jax.device_put(a, mesh.cut(a.shape)), weights)
assert not all(a.is_fully_replicated for a in jax.tree.leaves(cut))
alone = gradient(lambda weights: weights)(weights, x, t)
shared = gradient(mesh.gathered)(cut, *jax.device_put((x, t), mesh.examples()))
largest = max(np.abs(a).max() for a in jax.tree.leaves(alone))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), shared, alone)

doubled = map_examples(lambda factor, a, b: {"sum": factor * (a + b)})
a, b = np.arange(11.0), np.ones(11)
np.testing.assert_allclose(doubled(jnp.float32(2.0), a, b)["sum"], 2 * (a + b))

counted = map_pieces(lambda factor, given: (factor * given[0], given[1] + 1))
placed, size = share_out(a)
state = (placed, jnp.int32(0))
for factor in (2.0, 3.0):
    state = counted(jnp.float32(factor), state)
assert size == 11 and state[0].shape == (16,) and len(state[0].sharding.device_set) == 8
np.testing.assert_allclose(np.asarray(state[0])[:size], 6 * a)
assert int(state[1]) == 2

message = ""
try:
    check_batch(12)
except UserError as error:
    message = str(error)
assert "use 8 or 16" in message, message
print("eight devices agree with one")
