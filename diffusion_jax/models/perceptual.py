"""LPIPS: the distance of images in the features of VGG16 (Zhang et al. 2018, eq. 1; Simonyan &
Zisserman 2015), with weights as torchvision and the paper's authors name them."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

# Of each stage its convolutions' numbers in `features`, and their channels; between two stages the
# image is halved by maxima.
STAGES = (
    ((0, 2), 64),
    ((5, 7), 128),
    ((10, 12, 14), 256),
    ((17, 19, 21), 512),
    ((24, 26, 28), 512),
)
MEAN = np.array([-0.030, -0.088, -0.188], np.float32)  # of images in [-1, 1], LPIPS' own
DEVIATION = np.array([0.458, 0.448, 0.450], np.float32)
TINY = 1e-20  # of a square, so that features which are all 0 have a gradient


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors that are needed, in PyTorch's order of axes."""
    found, before = {}, 3
    for k, (numbers, channels) in enumerate(STAGES):
        for number in numbers:
            found[f"features.{number}.weight"] = (channels, before, 3, 3)
            found[f"features.{number}.bias"] = (channels,)
            before = channels
        found[f"lin{k}.model.1.weight"] = (1, channels, 1, 1)
    return found


def weights(tensors: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """The tensors of `shapes`, in JAX's order of axes."""
    order = lambda a: a.transpose(2, 3, 1, 0) if a.ndim == 4 else a
    return {name: jnp.asarray(order(tensors[name]), jnp.float32) for name in shapes()}


def features(params: Mapping[str, jax.Array], x: jax.Array) -> list[jax.Array]:
    """What each stage's last convolution says of images [B, H, W, 3] in [-1, 1], at least 0, each
    position of length 1."""
    h, found = (x - MEAN) / DEVIATION, []
    for k, (numbers, _) in enumerate(STAGES):
        if k:
            h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for number in numbers:
            kernel, bias = (params[f"features.{number}.{part}"] for part in ("weight", "bias"))
            axes = ("NHWC", "HWIO", "NHWC")
            h = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=axes)
            h = jax.nn.relu(h + bias)
        found.append(h / jnp.sqrt(jnp.square(h).sum(axis=-1, keepdims=True) + TINY))
    return found


def distance(params: Mapping[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    """LPIPS [B] of images [B, H, W, 3] in [-1, 1], of at least 16 x 16."""
    total = jnp.zeros(len(x))
    for k, (a, b) in enumerate(zip(features(params, x), features(params, y), strict=True)):
        weighted = jnp.square(a - b) * params[f"lin{k}.model.1.weight"].reshape(-1)
        total += weighted.sum(axis=-1).mean(axis=(1, 2))
    return total
