"""What `cpu.tune` sets, against a process that does without."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tiny import ROOT, environment

from diffusion_jax.devices import cpu
from diffusion_jax.devices.cpu import tune
from diffusion_jax.models.unet import UNet


def value_and_gradient():
    """Of a U-Net, large enough that XLA asks its libraries."""
    network = UNet(
        out_channels=6, channels=32, channel_mult=(1,), blocks=1, attention_factors=(1,), heads=4
    )
    rng, t = np.random.default_rng(0), np.arange(4) * np.float32(100)
    x = rng.standard_normal((4, 16, 16, 3), np.float32)
    draw = lambda a: rng.standard_normal(a.shape, np.float32)  # no layer is zero
    drawn = jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0), x, t))
    scaled = lambda tree: jax.tree.map(lambda a: a / np.sqrt(np.prod(a.shape[:-1]) + 1), tree)
    params = jax.jit(scaled, compiler_options=cpu.once())(drawn)
    loss = lambda params: jnp.sum(jnp.square(network.apply(params, x, t)))
    value = jax.jit(network.apply, compiler_options=cpu.evaluating())(params, x, t)
    return [value, *jax.tree.leaves(jax.jit(jax.grad(loss))(params))]


def test_a_tuned_process_computes_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "tuned.npz")],
        env=environment(PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "tests")))),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tuned = np.load(tmp_path / "tuned.npz")
    results = value_and_gradient()
    largest = max(
        np.abs(gradient).max() for gradient in results[1:]
    )  # some are zero but for rounding: biases before a norm
    for i, expected in enumerate(results):
        assert np.abs(tuned[f"arr_{i}"] - expected).max() <= 1e-5 * (
            largest if i else np.abs(expected).max()
        ), i


def test_a_setting_of_the_user_is_left_alone():
    program = (
        "import os; from diffusion_jax.devices.cpu import *; tune(); "
        "print(os.environ['XLA_FLAGS'], evaluating(), once())"
    )
    given = "--xla_cpu_experimental_ynn_fusion_type=dot"
    variables = environment(XLA_FLAGS=given, JAX_PLATFORMS="cpu")
    done = subprocess.run(
        [sys.executable, "-c", program], env=variables, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == f"{given} None None", done.stderr[-2000:]


if __name__ == "__main__":
    tune()
    if jax.__version_info__[:2] == (0, 10):
        assert (
            "ynn_fusion"
            in jax.jit(lambda x: jnp.sum(x * x + x)).lower(jnp.ones((64, 4096))).compile().as_text()
        )
        assert cpu.evaluating() and cpu.once()
    np.savez(sys.argv[1], *value_and_gradient())
