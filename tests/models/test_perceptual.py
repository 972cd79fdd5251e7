"""LPIPS against the same network written in PyTorch, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.models import perceptual
from diffusion_jax.runs.network import PERCEPTUAL

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tensors():
    """Of about the size that keeps a layer's output near its input's; linear ones at least 0."""
    rng, found = np.random.default_rng(0), {}
    for name, shape in perceptual.shapes().items():
        drawn = rng.standard_normal(shape, np.float32)
        scale = (2.0 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 0.1
        found[name] = np.abs(drawn) if name.startswith("lin") else drawn * np.float32(scale)
    return found


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    """With a tensor that is not needed, as torchvision's files have."""
    path = tmp_path_factory.mktemp("lpips") / "vgg.npz"
    np.savez(path, **tensors, **{"classifier.0.bias": np.zeros(3, np.float32)})
    return path


def in_torch(tensors, x, y):
    """Zhang et al. 2018, eq. 1, with the scaling of their code."""
    functional, tensor = torch.nn.functional, lambda a: torch.from_numpy(np.ascontiguousarray(a))
    shift, scale = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
    column = lambda values: torch.tensor(values).reshape(1, 3, 1, 1)

    def features(x):
        h, found = (tensor(x.transpose(0, 3, 1, 2)) - column(shift)) / column(scale), []
        for i in range(30):
            if i in (4, 9, 16, 23):
                h = functional.max_pool2d(h, 2)
            elif f"features.{i}.weight" in tensors:
                of = [tensor(tensors[f"features.{i}.{part}"]) for part in ("weight", "bias")]
                h = torch.relu(functional.conv2d(h, *of, padding=1))
                if i in (2, 7, 14, 21, 28):
                    found.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    total = 0.0
    for k, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        of = tensor(tensors[f"lin{k}.model.1.weight"])
        total += functional.conv2d((a - b).square(), of).mean((1, 2, 3))
    return total.numpy()


def test_the_distance_is_that_of_pytorch_and_dead_features_have_a_gradient(tensors, file):
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    y = np.clip(x + 0.3 * rng.standard_normal(x.shape), -1, 1).astype(np.float32)

    @jax.jit
    def of(params, y):
        found, pull = jax.vjp(lambda y: PERCEPTUAL.distance(params, x, y), y)
        return found, pull(jnp.ones(2))[0]

    params = PERCEPTUAL.load(str(file))
    np.testing.assert_allclose(of(params, y)[0], in_torch(tensors, x, y), rtol=1e-5)
    dead = params | {"features.28.bias": jnp.full(512, -1e6)}
    slope = of(dead, y)[1]
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_a_file_that_lacks_a_layer_is_refused_by_its_name(tensors, tmp_path):
    part = {name: a for name, a in tensors.items() if name != "lin3.model.1.weight"}
    np.savez(tmp_path / "part.npz", **part)
    with pytest.raises(UserError, match=r"missing: lin3\.model\.1\.weight"):
        PERCEPTUAL.load(str(tmp_path / "part.npz"))
