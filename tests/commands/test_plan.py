"""The command `plan`: its numbers against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import experiment_file, main_run, mlp_config, tiny_config

from diffusion_jax.commands.plan import make_plan, report
from diffusion_jax.core.errors import UserError
from diffusion_jax.devices import flops, hardware
from diffusion_jax.runs.build import build
from diffusion_jax.runs.settings import to_json

# of the tiny run: channels, the embedding's width, labels, noise levels
C, E, CLASSES, T = 16, 64, 10, 20

# Its network: conv_in, a block down, block, attention and block in the middle, two blocks up on [h,
# skip], conv_out.
BLOCKS = [(C, C)] * 3 + [(2 * C, C)] * 2


def parameters_by_hand():
    conv = lambda a, b, size: size * size * a * b + b
    dense = lambda a, b: a * b + b
    block = lambda a, b: (
        2 * a
        + conv(a, b, 3)
        + dense(E, 2 * b)
        + 2 * b
        + conv(b, b, 3)
        + (conv(a, b, 1) if a != b else 0)
    )  # norm1, conv1, embedding, norm2, conv2, skip
    attention = 2 * C + dense(C, 3 * C) + dense(C, C)
    ends = conv(1, C, 3) + 2 * C + conv(C, 1, 3)
    return (
        dense(C, E)
        + dense(E, E)
        + CLASSES * E
        + ends
        + attention
        + sum(block(a, b) for a, b in BLOCKS)
    )


def forward_flops_by_hand():
    """An image of 8 x 8; of a 3 x 3 kernel's 9 x 64 taps, (3 x 8 - 2)^2 = 484 meet the image and
    not its padding."""
    conv3, conv1, n = (lambda a, b: 2 * 484 * a * b), (lambda a, b: 2 * 64 * a * b), 64
    block = lambda a, b: conv3(a, b) + conv3(b, b) + 2 * E * 2 * b + (conv1(a, b) if a != b else 0)
    attention = conv1(C, 3 * C) + conv1(C, C) + 2 * (2 * n * n * C)  # q k^T and its product with v
    return (
        2 * C * E
        + 2 * E * E
        + conv3(1, C)
        + conv3(C, 1)
        + attention
        + sum(block(a, b) for a, b in BLOCKS)
    )


@pytest.fixture(scope="module")
def plan():
    return make_plan(tiny_config())


def perceptron(**training):
    """A run whose step compiles in a moment, and whose memory is that of its batch."""
    return mlp_config(**({"batch_size": 1024} | training))


@pytest.fixture(scope="module")
def other():
    return make_plan(perceptron())


def test_parameters_are_those_counted_by_hand(plan):
    assert plan.parameters == parameters_by_hand()


def test_the_state_is_four_numbers_a_parameter_and_a_little(plan):
    each = 4 * parameters_by_hand()
    assert plan.state["parameters"] == plan.state["EMA"] == each
    assert (
        plan.state["optimizer"] == 2 * each + 2 * 4
    )  # Adam's two moments; its step and the schedule's
    aux = jax.eval_shape(build(tiny_config()).init_state, jax.random.key(0)).aux
    history = sum(4 * a.size for a in jax.tree.leaves(aux))
    assert history == 4 * T * (10 + 1)  # ten losses of each t, and their count
    assert plan.state["the rest"] == 4 + history
    assert plan.state["frozen"] == 0
    assert plan.batch == 16 * (8 * 8 + 4)  # uint8 pixels and an int32 label
    assert plan.temporary > each  # the gradients, at least


def test_the_flops_of_the_network_are_those_counted_by_hand():
    parts = build(tiny_config())
    params = jax.eval_shape(parts.init_params, jax.random.key(0))
    cond = {"label": jnp.zeros(16, jnp.int32)}
    apply = lambda params, x: parts.apply_fn(params, x, jnp.zeros(16), cond)
    x = jnp.zeros((16, 8, 8, 1))
    forward = flops.count(jax.make_jaxpr(apply)(params, x)).flops
    assert forward == 16 * forward_flops_by_hand()
    both = flops.count(
        jax.make_jaxpr(jax.grad(lambda params: apply(params, x).sum()))(params)
    ).flops
    # backward twice as much, but for the gradient by the image and by the features of t, which
    # nobody asks for, and attention's two products once more
    again = 2 * (2 * 64 * 64 * C)
    assert both == 16 * (3 * forward_flops_by_hand() - 2 * 484 * C - 2 * C * E + again)


def test_the_flops_of_a_step_are_three_forward_passes_and_near_xlas(plan):
    once = 3 * 16 * forward_flops_by_hand()
    assert once < plan.flops < 1.03 * once  # attention's forward products count twice
    # XLA counts these once, and also what is no product: norms, noise, Adam
    assert once < plan.xla_flops < 1.15 * once


def test_loops_count_as_often_as_they_run():
    a = jnp.ones((8, 8))
    product = 2 * 8**3
    looped = lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=5)[0]
    assert flops.count(jax.make_jaxpr(looped)(a)) == (5 * product, True)
    unrolled = lambda a: jax.lax.scan(lambda c, _: (c @ a, None), a, None, length=5, unroll=5)[0]
    assert flops.count(jax.make_jaxpr(unrolled)(a)) == (5 * product, False)
    branches = lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a @ a, a)
    assert flops.count(jax.make_jaxpr(branches)(a)).flops == 2 * product
    again = jax.grad(lambda a: jax.checkpoint(lambda a: jnp.sin(a @ a) @ a)(a).sum())
    kept = jax.grad(lambda a: (jnp.sin(a @ a) @ a).sum())
    assert (
        flops.count(jax.make_jaxpr(again)(a)).flops
        == flops.count(jax.make_jaxpr(kept)(a)).flops + product
    )


@pytest.mark.parametrize(
    ("stride", "size", "height"), [(1, 3, 8), (2, 3, 8), (2, 3, 7), (1, 1, 4), (1, 5, 6)]
)
def test_a_convolution_and_its_gradients_count_the_same_products(stride, size, height):
    """By brute force: a convolution of ones by ones adds up as many products as it has, and so do
    its gradients."""
    kernel, x = np.ones((size, size, 3, 5), np.float32), np.ones((2, height, height, 3), np.float32)
    pad = [(size // 2,) * 2] * 2
    conv = lambda x, kernel: jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    products = 2 * float(conv(x, kernel).sum())
    assert flops.count(jax.make_jaxpr(conv)(x, kernel)).flops == products
    for argument in (0, 1):
        gradient = jax.make_jaxpr(jax.grad(lambda *args: conv(*args).sum(), argument))(x, kernel)
        both = flops.count(gradient).flops
        assert both == 2 * products  # the forward pass stands in the jaxpr, too


def test_accumulation_changes_the_memory_and_not_the_flops(other):
    accumulated = make_plan(perceptron(accumulation_steps=2))
    assert accumulated.flops == pytest.approx(other.flops, rel=1e-6)
    assert accumulated.temporary < other.temporary
    assert accumulated.state == other.state


def test_frozen_parameters_have_no_average_and_no_moments(other):
    frozen = make_plan(perceptron(freeze="dense_in"))
    still = 4 * (64 * 64 + 64)  # of float32 numbers
    assert other.state["frozen"] == 0
    assert frozen.state["frozen"] == still
    assert frozen.state["EMA"] == frozen.state["parameters"] == other.state["parameters"] - still
    assert frozen.state["optimizer"] == other.state["optimizer"] - 2 * still
    assert frozen.parameters == other.parameters - still // 4


def test_devices_share_the_batch_and_the_state(other):
    shared = make_plan(perceptron(fsdp=2), devices=4)
    assert (shared.images, shared.batch) == (256, other.batch // 4)
    for part in ("parameters", "EMA", "optimizer"):
        # small arrays are whole
        assert 0.5 * other.state[part] < shared.state[part] < 0.6 * other.state[part]
    with pytest.raises(
        UserError, match="training.fsdp=2 must divide the number of devices, --devices 3"
    ):
        make_plan(perceptron(fsdp=2), devices=3)
    assert shared.flops == pytest.approx(other.flops / 4, rel=0.02)
    h100 = hardware.DEVICES["H100"]
    assert shared.bound(h100) == pytest.approx(4 * other.bound(h100), rel=0.02)
    assert shared.memory == sum(shared.state.values()) + shared.batch + shared.temporary
    with pytest.raises(
        UserError, match=r"batch_size=1024 is not divisible by 3 \(devices x accumulation\)"
    ):
        make_plan(perceptron(), devices=3)


def test_the_bound_is_the_peak_over_the_flops_of_an_image(plan):
    h100 = hardware.DEVICES["H100"]
    assert plan._replace(flops=1.6e9).bound(h100) == pytest.approx(494e12 / 1e8)
    assert plan._replace(flops=1.6e9, dtype="bfloat16", devices=8).bound(h100) == pytest.approx(
        8 * 989e12 / 1e8
    )


@pytest.mark.parametrize(
    ("temporary", "verdict"),
    [
        (10e9, ": fits\n"),
        (14e9, ": fits, with XLA_PYTHON_CLIENT_MEM_FRACTION above 0.8"),
        (20e9, ": does NOT fit"),
    ],
)
def test_whether_it_fits(plan, temporary, verdict):
    text = report(plan._replace(temporary=temporary), "T4")
    assert verdict in text
    assert "upper bound" in text
    assert "T4 data sheet" in text


@pytest.mark.parametrize(
    ("name", "found"),
    [("h100", "H100"), ("A100-80gb", "A100-80GB"), ("TPU v5e", "TPU-v5e"), ("v6e", "TPU-v6e")],
)
def test_devices_by_name(name, found):
    assert hardware.find(name) == (found, hardware.DEVICES[found])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("H10", "H100"), ("A100", "A100-40GB or A100-80GB"), ("v5", "TPU-v5e"), ("B2", "")],
)
def test_an_unknown_device_is_answered_with_the_nearest(name, hint, tmp_path):
    with pytest.raises(UserError) as error:
        main_run("plan", "--config", experiment_file(tmp_path), "--device", name)
    assert str(error.value).startswith(f"--device has no '{name}'; ")
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_the_table_is_of_dense_rates_with_their_sources():
    for device in hardware.DEVICES.values():
        assert 8e9 < device.memory < 1e12
        assert device.float32 <= device.bfloat16 < 1e15  # a sparse rate of Hopper's is above
        assert 1e11 < device.bandwidth < 1e13
        assert "20" in device.source


def test_the_command_writes_nothing_and_needs_no_workdir(tmp_path, capsys, monkeypatch):
    file = experiment_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    main_run(
        "plan",
        "--config",
        file,
        "--device",
        "TPU-v4",
        "--config.model.dtype=bfloat16",
        "--devices=2",
    )
    text = capsys.readouterr().out
    for word in (
        f"{parameters_by_hand():,}",
        "FLOPs a step",
        "XLA's cost analysis",
        "a TPU-v4's 32 GB: fits",
        "each of 2 devices",
    ):
        assert word in text
    assert "275 TFLOP/s in bfloat16" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_is_planned_by_its_workdir(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(mlp_config()))
    main_run("plan", "--workdir", tmp_path)
    assert "--device says whether that fits: H100, " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(UserError, match="--config is missing"):
        main_run("plan", "--device", "H100")
