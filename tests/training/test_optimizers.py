"""The learning rate by step."""

import numpy as np
import pytest

from diffusion_jax.training.optimizers import scheduled


@pytest.mark.parametrize("warmup_steps", [0, 100])
def test_a_linear_decay_ends_at_zero_with_the_last_step(warmup_steps):
    rate = scheduled(0.01, 1100, warmup_steps, "linear")
    width = 1100 - warmup_steps
    for step in (warmup_steps, warmup_steps + width // 4, 1099, 1100):
        np.testing.assert_allclose(rate(step), 0.01 * (1100 - step) / width, atol=1e-8)
    np.testing.assert_allclose(rate(50), 0.005 if warmup_steps else 0.01 * 1050 / 1100, rtol=1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_the_inverse_square_root_begins_after_its_steps(warmup_steps):
    rate = scheduled(0.01, 10_000, warmup_steps, "inverse_sqrt", 400)
    for step, expected in [(50, 0.01), (400, 0.01), (1600, 0.005), (40_000, 0.001)]:
        np.testing.assert_allclose(rate(step), expected, rtol=1e-5)
    np.testing.assert_allclose(rate(5), 0.005 if warmup_steps else 0.01, rtol=1e-5)
