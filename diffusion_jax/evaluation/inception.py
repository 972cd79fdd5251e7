"""The Inception network that FID is defined with: the TensorFlow graph of 2015-12-05 up to its 2048
pooled features.

FID: Heusel et al. 2017; the network: Szegedy et al. 2016, as that graph has it. Its average pools
do not count the padding, its last block pools by maximum; its batch norms, with epsilon 1e-3 and no
gamma, are folded into the convolutions here. Layers have the graph's names, dots in place of
slashes: mixed_4.tower_1.conv_3."""

import pathlib
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree
from diffusion_jax.evaluation import inception_files
from diffusion_jax.interop.files import Tensors

SIZE = 299  # pixels, height and width of the network's input
EPSILON = 1e-3  # of the batch norms
SPATIAL_CHANNELS = 7  # of mixed_6/conv, 17 x 17 pixels, that sFID takes


class Activations(NamedTuple):
    """pool: float32 [B, 2048], FID's. spatial: float32 [B, 2023], sFID's (Nash et al. 2021), as ADM
    computes it."""

    pool: jax.Array
    spatial: jax.Array


def resize(images, size: int = SIZE) -> jax.Array:
    """[B, H, W, C] -> float32 [B, size, size, C] by TensorFlow 1's bilinear resize: output i is the
    input at i * in / out.

    Corners are not aligned, pixels have no half-pixel centres, and nothing is smoothed before it is
    shrunk."""
    x = jnp.asarray(images, jnp.float32)
    for axis in (2, 1):
        length = x.shape[axis]
        source = np.arange(size, dtype=np.float32) * np.float32(length / size)
        low = np.minimum(source.astype(np.int32), length - 1)
        weight = (source - low).reshape((size,) + (1,) * (3 - axis))
        a, b = jnp.take(x, low, axis), jnp.take(x, np.minimum(low + 1, length - 1), axis)
        x = a + (b - a) * weight
    return x


def average_pool(x) -> jax.Array:
    """The mean of 3 x 3 pixels, at the border of those inside the image."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def max_pool(x, stride: int, padding: str) -> jax.Array:
    """The largest of 3 x 3 pixels."""
    return nn.max_pool(x, (3, 3), (stride, stride), padding)


def join(*branches) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


def conv(
    x, name: str, features: int, kernel=(1, 1), stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """Convolution and ReLU in full float32, which GPUs and TPUs would round otherwise."""
    return nn.relu(
        nn.Conv(features, kernel, stride, padding, precision=jax.lax.Precision.HIGHEST, name=name)(
            x
        )
    )


def tower(x, name: str, *layers, shrink: bool = False) -> jax.Array:
    """Convolutions in turn, each (features, kernel); where it shrinks, the last one halves the
    image."""
    for i, (features, kernel) in enumerate(layers):
        stride, padding = (2, "VALID") if shrink and i == len(layers) - 1 else (1, "SAME")
        x = conv(x, f"{name}.conv_{i}" if i else f"{name}.conv", features, kernel, stride, padding)
    return x


def block35(x, name: str, pooled: int) -> jax.Array:
    """35 x 35 pixels."""
    return join(
        conv(x, f"{name}.conv", 64),
        tower(x, f"{name}.tower", (48, (1, 1)), (64, (5, 5))),
        tower(x, f"{name}.tower_1", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        conv(average_pool(x), f"{name}.tower_2.conv", pooled),
    )


def block17(x, name: str, n: int) -> jax.Array:
    """17 x 17 pixels."""
    row, column = (1, 7), (7, 1)
    return join(
        conv(x, f"{name}.conv", 192),
        tower(x, f"{name}.tower", (n, (1, 1)), (n, row), (192, column)),
        tower(x, f"{name}.tower_1", (n, (1, 1)), (n, column), (n, row), (n, column), (192, row)),
        conv(average_pool(x), f"{name}.tower_2.conv", 192),
    )


def block8(x, name: str, pooled) -> jax.Array:
    """8 x 8 pixels. pooled: x after the block's pool."""
    fork = lambda x, name: join(
        conv(x, f"{name}_conv", 384, (1, 3)), conv(x, f"{name}_conv_1", 384, (3, 1))
    )
    double = conv(conv(x, f"{name}.tower_1_conv", 448), f"{name}.tower_1_conv_1", 384, (3, 3))
    return join(
        conv(x, f"{name}.conv", 320),
        fork(conv(x, f"{name}.tower_conv", 384), f"{name}.tower_mixed"),
        fork(double, f"{name}.tower_1_mixed"),
        conv(pooled, f"{name}.tower_2_conv", 192),
    )


class Inception(nn.Module):
    """[B, 299, 299, 3] in [-1, 1) -> Activations."""

    @nn.compact
    def __call__(self, x) -> Activations:
        x = conv(x, "conv", 32, (3, 3), 2, "VALID")
        x = conv(x, "conv_1", 32, (3, 3), 1, "VALID")
        x = conv(x, "conv_2", 64, (3, 3))
        x = max_pool(x, 2, "VALID")
        x = conv(x, "conv_3", 80)
        x = conv(x, "conv_4", 192, (3, 3), 1, "VALID")
        x = max_pool(x, 2, "VALID")

        x = block35(x, "mixed", 32)
        x = block35(x, "mixed_1", 64)
        x = block35(x, "mixed_2", 64)
        x = join(
            conv(x, "mixed_3.conv", 384, (3, 3), 2, "VALID"),
            tower(x, "mixed_3.tower", (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), shrink=True),
            max_pool(x, 2, "VALID"),
        )

        x = block17(x, "mixed_4", 128)
        x = block17(x, "mixed_5", 160)
        x = block17(x, "mixed_6", 160)
        spatial = x[..., :SPATIAL_CHANNELS]  # mixed_6/conv comes first in its block
        x = block17(x, "mixed_7", 192)
        x = join(
            tower(x, "mixed_8.tower", (192, (1, 1)), (320, (3, 3)), shrink=True),
            tower(
                x,
                "mixed_8.tower_1",
                (192, (1, 1)),
                (192, (1, 7)),
                (192, (7, 1)),
                (192, (3, 3)),
                shrink=True,
            ),
            max_pool(x, 2, "VALID"),
        )

        x = block8(x, "mixed_9", average_pool(x))
        x = block8(x, "mixed_10", max_pool(x, 1, "SAME"))
        return Activations(x.mean(axis=(1, 2)), spatial.reshape(len(x), -1))


def prepare(images) -> jax.Array:
    """uint8 images [B, H, W, 1 or 3] of any size -> the network's input; grayscale is repeated to
    three channels.

    Raises UserError for images of another kind.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(
            f"Inception takes uint8 images [B, H, W, 1 or 3], not {images.dtype} "
            f"{list(images.shape)}"
        )
    x = (resize(images) - 128.0) / 128.0
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


@jax.jit
def activations(params: PyTree, images) -> Activations:
    """The network's features of `images`, as `prepare` takes them.

    params: from `load`. They are an argument for the compiler's sake, which stalls over them as
    constants."""
    return cast(Activations, Inception().apply({"params": params}, prepare(images)))


@jax.jit
def features(params: PyTree, images) -> jax.Array:
    """float32 [B, 2048] of uint8 images: `activations(params, images).pool`."""
    return activations(params, images).pool


def shapes() -> dict[str, tuple[int, ...]]:
    """The graph's name of every layer -> the shape of its kernel, [height, width, in, out]."""
    example = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), example)["params"]
    return {layer: arrays["kernel"].shape for layer, arrays in params.items()}


STEM = {
    "conv": "1a_3x3",
    "conv_1": "2a_3x3",
    "conv_2": "2b_3x3",
    "conv_3": "3b_1x1",
    "conv_4": "4a_3x3",
}
BLOCKS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
BRANCHES_35 = {
    "conv": "branch1x1",
    "tower": "branch5x5",
    "tower_1": "branch3x3dbl",
    "tower_2": "branch_pool",
}
BRANCHES_17 = {
    "conv": "branch1x1",
    "tower": "branch7x7",
    "tower_1": "branch7x7dbl",
    "tower_2": "branch_pool",
}
BRANCHES = {
    "6a": {"conv": "branch3x3", "tower": "branch3x3dbl"},
    "7a": {"tower": "branch3x3", "tower_1": "branch7x7x3"},
}
BRANCHES |= dict.fromkeys(("5b", "5c", "5d"), BRANCHES_35) | dict.fromkeys(
    ("6b", "6c", "6d", "6e"), BRANCHES_17
)
LAYERS_8 = {"conv": "branch1x1", "tower_conv": "branch3x3_1", "tower_2_conv": "branch_pool"}
LAYERS_8 |= {"tower_mixed_conv": "branch3x3_2a", "tower_mixed_conv_1": "branch3x3_2b"}
LAYERS_8 |= {"tower_1_conv": "branch3x3dbl_1", "tower_1_conv_1": "branch3x3dbl_2"}
LAYERS_8 |= {"tower_1_mixed_conv": "branch3x3dbl_3a", "tower_1_mixed_conv_1": "branch3x3dbl_3b"}


def torch_name(layer: str) -> str:
    """The graph's name of a layer -> torchvision's, which pytorch-fid's file has."""
    if layer in STEM:
        return f"Conv2d_{STEM[layer]}"
    block, rest = layer.split(".", 1)
    suffix = BLOCKS[int(block.removeprefix("mixed").removeprefix("_") or 0)]
    if suffix in ("7b", "7c"):
        return f"Mixed_{suffix}.{LAYERS_8[rest]}"
    branch, _, inner = rest.partition(".")
    number = int(inner.removeprefix("conv").removeprefix("_") or 0) + 1
    numbered = f"_{number}" if inner and branch != "tower_2" else ""
    return f"Mixed_{suffix}.{BRANCHES[suffix][branch]}{numbered}"


def to_params(tensors: Tensors) -> PyTree:
    """The arrays of a file, named as in the graph or as in torchvision, -> the parameters of
    `Inception`, float32.

    Kernels in the file are [out, in, height, width]. Raises UserError naming arrays that are
    missing or of another shape; others, such as those of the classifier, are left aside."""
    parts = {
        "weight": "conv.weight",
        "gamma": "bn.weight",
        "beta": "bn.bias",
        "mean": "bn.running_mean",
        "var": "bn.running_var",
    }
    if any(name.startswith("Conv2d_1a") for name in tensors):
        name_of = lambda layer, part: f"{torch_name(layer)}.{parts[part]}"
    else:
        tensors = {name.rpartition("layers.")[2]: array for name, array in tensors.items()}
        name_of = lambda layer, part: f"{layer}.{part}"

    def get(layer, part, shape):
        name = name_of(layer, part)
        if name not in tensors or tensors[name].shape != shape:
            found = f"of shape {list(tensors[name].shape)}" if name in tensors else "missing"
            raise UserError(
                f"these are not the weights of FID's Inception network: {name} {list(shape)} is "
                f"{found}"
            )
        return tensors[name].astype(np.float64)

    params = {}
    for layer, (height, width, inputs, outputs) in shapes().items():
        kernel = get(layer, "weight", (outputs, inputs, height, width)).transpose(2, 3, 1, 0)
        beta, mean, var = (get(layer, part, (outputs,)) for part in ("beta", "mean", "var"))
        gamma = get(layer, "gamma", (outputs,)) if name_of(layer, "gamma") in tensors else 1.0
        scale = gamma / np.sqrt(var + EPSILON)
        params[layer] = {
            "kernel": np.float32(kernel * scale),
            "bias": np.float32(beta - mean * scale),
        }
    return params


def logits(tensors: Tensors) -> np.ndarray | None:
    """[2048, 1008] of the graph's classifier, whose bias the Inception Score leaves out; None where
    the file has none."""
    found = [array for array in tensors.values() if array.shape == (1008, 2048)]
    return found[0].astype(np.float32).T if len(found) == 1 else None


def load(path: str | pathlib.Path = "") -> PyTree:
    """The parameters that `features` takes, from the file that `find` finds. Raises UserError where
    there is none that fits."""
    return jax.tree.map(jnp.asarray, to_params(inception_files.read(inception_files.find(path))))
