"""The Inception network of FID: a peer's features where its weights are at hand, and what can be
told without them."""

import hashlib
import os
import pathlib
import pickle
import sys
import zipfile

import jax
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import inception, inception_files
from diffusion_jax.interop.files import fingerprint

needs_weights = pytest.mark.skipif(
    not os.environ.get(inception_files.VARIABLE),
    reason=f"{inception_files.VARIABLE} names no file of the Inception network's weights",
)


@pytest.fixture(scope="module")
def params():
    return inception.load()


@needs_weights
def test_features_of_a_peer(params, reference):
    recorded = reference("inception.npz")
    images = recorded["images"]
    found = inception.activations(params, images)
    assert found.pool.dtype == np.float32 and found.pool.shape == (len(images), 2048)
    np.testing.assert_allclose(found.pool, recorded["features"], atol=1e-3)
    assert found.spatial.shape == (len(images), 17 * 17 * 7)
    assert (np.asarray(found.spatial) >= 0).all() and np.std(found.spatial) > 0  # after the ReLU
    assert jax.eval_shape(inception.features, params, images) == jax.eval_shape(lambda: found.pool)


@pytest.mark.parametrize("shape", [(5, 7), (30, 11), (13, 13)])
def test_resize_pixel_by_pixel(shape):
    images, size = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8), 13
    expected = np.zeros((2, size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = i * shape[0] / size, j * shape[1] / size
            for row, of_row in ((int(y), 1 - y % 1), (min(int(y) + 1, shape[0] - 1), y % 1)):
                for column, of_column in (
                    (int(x), 1 - x % 1),
                    (min(int(x) + 1, shape[1] - 1), x % 1),
                ):
                    expected[:, i, j] += of_row * of_column * images[:, row, column]
    np.testing.assert_allclose(inception.resize(images, size), expected, atol=2e-3)


def test_a_large_image_keeps_every_second_pixel():
    images = np.random.default_rng(0).integers(0, 256, (1, 598, 598, 1), np.uint8)
    np.testing.assert_array_equal(inception.resize(images), images[:, ::2, ::2])


def test_average_pool_leaves_the_padding_out():
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    expected = [
        [x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean(axis=(0, 1)) for j in range(5)]
        for i in range(4)
    ]
    np.testing.assert_allclose(inception.average_pool(x)[0], expected, atol=1e-6)


def test_max_pool():
    x = -np.random.default_rng(0).uniform(size=(1, 5, 5, 2)).astype(np.float32)
    largest = lambda i, j: x[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max(axis=(0, 1))
    same = inception.max_pool(x, 1, "SAME")[0]
    np.testing.assert_array_equal(same, [[largest(i, j) for j in range(5)] for i in range(5)])
    np.testing.assert_array_equal(
        inception.max_pool(x, 2, "VALID")[0], [[largest(i, j) for j in (1, 3)] for i in (1, 3)]
    )


def test_input():
    gray = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 1), np.uint8)
    found = inception.prepare(gray)
    np.testing.assert_array_equal(
        found, np.repeat((gray / 128.0 - 1.0).astype(np.float32), 3, axis=-1)
    )
    for bad in (gray / 255.0, gray[0], np.repeat(gray, 2, axis=-1)):
        with pytest.raises(UserError, match="uint8 images"):
            inception.prepare(bad)


def numbered(prefix, *names):
    """torchvision's and the graph's names of a tower of so many layers."""
    return [(f"{prefix}_{i + 1}", name) for i, name in enumerate(names)]


CHAIN = ("conv", "conv_1", "conv_2", "conv_3", "conv_4")
LAYERS = list(zip(("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"), CHAIN, strict=True))
LAYERS = [(f"Conv2d_{theirs}", ours) for theirs, ours in LAYERS]
# by the sizes and the order of layers in torchvision's models/inception.py and in the graph
BRANCHES = {
    "5b mixed, 5c mixed_1, 5d mixed_2": [
        ("branch1x1", "conv"),
        *numbered("branch5x5", "tower.conv", "tower.conv_1"),
        *numbered("branch3x3dbl", "tower_1.conv", "tower_1.conv_1", "tower_1.conv_2"),
        ("branch_pool", "tower_2.conv"),
    ],
    "6a mixed_3": [
        ("branch3x3", "conv"),
        *numbered("branch3x3dbl", "tower.conv", "tower.conv_1", "tower.conv_2"),
    ],
    "6b mixed_4, 6c mixed_5, 6d mixed_6, 6e mixed_7": [
        ("branch1x1", "conv"),
        *numbered("branch7x7", "tower.conv", "tower.conv_1", "tower.conv_2"),
        *numbered("branch7x7dbl", *(f"tower_1.{name}" for name in CHAIN)),
        ("branch_pool", "tower_2.conv"),
    ],
    "7a mixed_8": [
        *numbered("branch3x3", "tower.conv", "tower.conv_1"),
        *numbered("branch7x7x3", *(f"tower_1.{name}" for name in CHAIN[:4])),
    ],
    "7b mixed_9, 7c mixed_10": [
        ("branch1x1", "conv"),
        ("branch3x3_1", "tower_conv"),
        ("branch3x3_2a", "tower_mixed_conv"),
        ("branch3x3_2b", "tower_mixed_conv_1"),
        ("branch3x3dbl_1", "tower_1_conv"),
        ("branch3x3dbl_2", "tower_1_conv_1"),
        ("branch3x3dbl_3a", "tower_1_mixed_conv"),
        ("branch3x3dbl_3b", "tower_1_mixed_conv_1"),
        ("branch_pool", "tower_2_conv"),
    ],
}
for blocks, layers in BRANCHES.items():
    for block in blocks.split(", "):
        suffix, graph = block.split()
        LAYERS += [(f"Mixed_{suffix}.{theirs}", f"{graph}.{ours}") for theirs, ours in layers]


@pytest.fixture(scope="module")
def files():
    """(the graph's names, torchvision's) -> the same random numbers."""
    rng, ours, theirs = np.random.default_rng(0), {}, {}
    kernels = inception.shapes()
    for torch, graph in LAYERS:
        height, width, inputs, outputs = kernels[graph]
        weight = rng.standard_normal((outputs, inputs, height, width), np.float32)
        beta, mean, var = (rng.uniform(0.5, 2.0, outputs).astype(np.float32) for _ in range(3))
        arrays = {"weight": weight, "beta": beta, "mean": mean, "var": var}
        ours |= {f"net.layers.{graph}.{name}": array for name, array in arrays.items()}
        theirs |= {
            f"{torch}.conv.weight": weight,
            f"{torch}.bn.weight": np.ones_like(beta),
            f"{torch}.bn.bias": beta,
        }
        theirs |= {f"{torch}.bn.running_mean": mean, f"{torch}.bn.running_var": var}
    theirs |= {
        "fc.weight": np.zeros((1008, 2048), np.float32),
        "fc.bias": np.zeros(1008, np.float32),
    }
    return ours, theirs


def test_layers_of_the_graph():
    """The names and the 21,802,784 numbers, with three for every channel, are those of the graph's
    arrays."""
    kernels = inception.shapes()
    assert sorted(kernels) == sorted(graph for _, graph in LAYERS) and len(kernels) == 94
    assert sum(np.prod(shape) + 3 * shape[-1] for shape in kernels.values()) == 21802784


def test_both_namings_give_the_same_parameters(files):
    ours, theirs = (inception.to_params(tensors) for tensors in files)
    assert ours.keys() == theirs.keys()
    for layer in ours:
        for name in ("kernel", "bias"):
            np.testing.assert_array_equal(ours[layer][name], theirs[layer][name], err_msg=layer)
    assert fingerprint(ours) == fingerprint(theirs)
    theirs["mixed_9.conv"]["bias"] = theirs["mixed_9.conv"]["bias"] + 1e-6
    assert fingerprint(ours) != fingerprint(theirs)


def test_batch_norm_is_folded(files):
    tensors, layer = dict(files[1]), "Mixed_5b.branch1x1"
    gamma = tensors[f"{layer}.bn.weight"] = np.linspace(0.5, 2.0, 64, dtype=np.float32)
    x = np.random.default_rng(1).normal(size=192)
    y = tensors[f"{layer}.conv.weight"][:, :, 0, 0] @ x
    y = (y - tensors[f"{layer}.bn.running_mean"]) / np.sqrt(
        tensors[f"{layer}.bn.running_var"] + 0.001
    )
    folded = inception.to_params(tensors)["mixed.conv"]
    np.testing.assert_allclose(
        x @ folded["kernel"][0, 0] + folded["bias"],
        gamma * y + tensors[f"{layer}.bn.bias"],
        rtol=1e-4,
    )


def test_weights_that_do_not_fit(files):
    ours, theirs = files
    without = {
        name: array
        for name, array in ours.items()
        if name != "net.layers.mixed_4.tower_1.conv_4.var"
    }
    with pytest.raises(UserError, match=r"mixed_4\.tower_1\.conv_4\.var \[192\] is missing"):
        inception.to_params(without)
    misshaped = theirs | {
        "Mixed_6b.branch7x7_2.conv.weight": theirs["Mixed_6b.branch7x7_2.conv.weight"].swapaxes(
            2, 3
        )
    }
    with pytest.raises(
        UserError,
        match=r"branch7x7_2\.conv\.weight \[128, 128, 1, 7\] is of shape \[128, 128, 7, 1\]",
    ):
        inception.to_params(misshaped)
    with pytest.raises(UserError, match=r"conv\.weight .* is missing"):
        inception.to_params({})


def test_an_npz_of_weights(tmp_path, files):
    np.savez(tmp_path / "weights.npz", **files[0])
    found = inception.load(tmp_path / "weights.npz")
    assert fingerprint(found) == fingerprint(inception.to_params(files[0]))


def test_a_torch_file_of_weights(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "new.pth")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        np.testing.assert_array_equal(inception_files.read(tmp_path / name)["a"], [0.0, 1.0, 2.0])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_file_of_weights(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")

    class Layer(torch.nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.stride = 2
            self.weight = torch.nn.Parameter(torch.randn(*shape))
            self.register_buffer("mean", torch.randn(shape[0]).double())
            self.register_buffer("batches", torch.arange(3))

        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.weight, stride=self.stride)

    net = torch.nn.Sequential(
        Layer(4, 3, 2, 5), torch.nn.Sequential(Layer(2, 4, 1, 1), torch.nn.ReLU())
    )
    net[0].weight.data = torch.randn(3, 4, 2, 5).transpose(0, 1)  # not contiguous
    torch.jit.script(net).save(tmp_path / "net.pt")
    expected = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    monkeypatch.setitem(sys.modules, "torch", None)  # its import raises ImportError
    found = inception_files.read(tmp_path / "net.pt")
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])


class Call:
    """Pickled, a call of `function`."""

    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def test_a_torchscript_file_runs_no_code(tmp_path):
    path, victim = tmp_path / "attack.pt", tmp_path / "victim"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", pickle.dumps(Call(os.mkdir, str(victim))))
        archive.writestr("net/code/__torch__.py", "")
    with pytest.raises(UserError, match=r"attack.pt cannot be read: unexpected \w+.mkdir"):
        inception_files.read(path)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (3, 2), (2, 1)), (5, (1,), (1,)), (-1, (2,), (1,)), (1, (2,), (-1,)), (0, (2,), (9,))],
)
def test_a_tensor_outside_its_storage(offset, shape, strides):
    with pytest.raises(pickle.UnpicklingError, match="outside"):
        inception_files._tensor(np.zeros(5, "<f4"), offset, shape, strides)


@pytest.mark.parametrize("name", ["damaged.npz", "damaged.pth", "damaged.bin"])
def test_files_that_are_none(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match=name):
        inception_files.read(tmp_path / name)


def test_where_the_weights_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "home", lambda: tmp_path)
    cached = tmp_path / ".cache/diffusion_jax" / inception_files.FILE
    named, told = tmp_path / "named.npz", tmp_path / "told.npz"
    for path in (cached, named, told):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.delenv(inception_files.VARIABLE, raising=False)
    assert inception_files.find() == cached
    monkeypatch.setenv(inception_files.VARIABLE, str(named))
    assert inception_files.find() == named
    assert inception_files.find(told) == told
    for missing in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(
            UserError,
            match=f"no file {missing} .*{inception_files.VARIABLE}.*{inception_files.FILE}.*NPZ",
        ):
            inception_files.find(missing)


def test_weights_are_fetched_whole_or_not_at_all(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 9000)  # more than one read
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    folder = tmp_path / "cache" / "inner"
    good, bad = folder / f"w-{digest[:8]}.pth", folder / "w-00000000.pth"

    assert inception_files.fetch(good, source.as_uri()) == good
    assert good.read_bytes() == source.read_bytes()
    with pytest.raises(UserError, match=f"SHA-256 {digest}, not .*{inception_files.VARIABLE}"):
        inception_files.fetch(bad, source.as_uri())
    with pytest.raises(UserError, match=f"cannot be fetched .*{inception_files.VARIABLE}"):
        inception_files.fetch(bad, (tmp_path / "none").as_uri())
    assert list(folder.iterdir()) == [good]
