"""Files of weights: read, refused, written whole, and their fingerprint."""

import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from tensors import assert_same, refusal

from diffusion_jax.interop import files


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_safetensors_of_every_precision_become_float32(tmp_path, dtype):
    path, values = (
        tmp_path / "w.safetensors",
        np.array([[0.5, -3.0], [1.25, 0.0]]),
    )  # exact in all of them
    safetensors.numpy.save_file({"a": values.astype(dtype)}, path)
    assert_same(files.read_checkpoint(path), {"a": values})


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pytorch_files_become_float32(tmp_path, suffix, dtype):
    torch = pytest.importorskip("torch")
    path, values = tmp_path / f"w{suffix}", np.array([[0.5, -3.0], [1.25, 0.0]])
    torch.save({"a": torch.nn.Parameter(torch.tensor(values, dtype=getattr(torch, dtype)))}, path)
    assert_same(files.read_checkpoint(path), {"a": values})


@pytest.mark.parametrize("content", [{"step": 3, "model": {}}, {0: [1.0]}, [], 5])
def test_pytorch_file_that_is_no_state_dict(tmp_path, content):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pt"
    torch.save(content, path)
    assert (
        refusal(files.read_checkpoint, path)
        == f"{path} holds no plain state dict, {{name: tensor}}"
    )


def test_pytorch_file_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch")

    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    torch.save({"a": Attack()}, tmp_path / "w.pt")
    assert "cannot be read" in refusal(files.read_checkpoint, tmp_path / "w.pt")
    assert not (tmp_path / "written").exists()


def test_pytorch_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # its import raises ImportError
    path = tmp_path / "w.pt"
    path.write_bytes(b"anything")
    assert refusal(files.read_checkpoint, path).endswith('pip install "diffusion_jax[torch]"')


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\3\4garbage", b"\x10" + bytes(7) + b"{}"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_corrupt_file(tmp_path, suffix, content):
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert refusal(files.read_checkpoint, path).startswith(f"{path} cannot be read: ")


def test_truncated_file(tmp_path):
    path = tmp_path / "w.safetensors"
    files.write_safetensors(path, {"a": np.ones(10, np.float32)})
    path.write_bytes(path.read_bytes()[:-4])
    assert "cannot be read: " in refusal(files.read_checkpoint, path)


def test_file_that_is_not_there_or_of_another_kind(tmp_path):
    for path in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        assert refusal(files.read_checkpoint, path) == f"no file {path}"
    message = f"{tmp_path / 'w.onnx'} is no file of weights; known: "
    assert refusal(files.read_checkpoint, tmp_path / "w.onnx").startswith(message)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, tensors = tmp_path / "w.safetensors", {"a": np.arange(6, dtype=np.float32)}
    save = safetensors.numpy.save_file

    def full_disk(values, partial):
        save(values, partial)
        raise OSError("no space left")

    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    message = f"{path} cannot be written: no space left"
    assert refusal(files.write_safetensors, path, tensors) == message
    assert not path.exists()
    monkeypatch.undo()
    files.write_safetensors(path, tensors)
    assert_same(files.read_checkpoint(path), tensors)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert refusal(files.write_safetensors, path, tensors) == f"{path} exists; choose another name"
    assert refusal(files.write_safetensors, tmp_path / "w.pt", tensors).endswith(
        "must end in .safetensors"
    )


def test_fingerprint_is_of_float32_values_and_names():
    params = {"b": {"kernel": np.array([[0.5, 1.0]])}, "a": np.array([2.0])}
    same = {"a": jnp.array([2.0]), "b": {"kernel": jnp.array([[0.5, 1.0]], jnp.bfloat16)}}
    assert files.fingerprint(params) == files.fingerprint(same)
    assert files.fingerprint(params) != files.fingerprint({"a": params["a"], "c": params["b"]})
    assert files.fingerprint(params) != files.fingerprint(params | {"a": np.array([2.001])})
