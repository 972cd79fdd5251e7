"""The files of Inception's weights: where they are found, fetched from, and how they are read."""

import hashlib
import http.client
import os
import pathlib
import pickle
import urllib.request
import zipfile

import numpy as np

from diffusion_jax.core.caches import cache_folder
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder
from diffusion_jax.interop.files import Tensors, read_checkpoint

VARIABLE = "DIFFUSION_JAX_INCEPTION"  # the environment's, a path
FILE = "pt_inception-2015-12-05-6726825d.pth"  # its name ends in the first digits of its SHA-256
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
WAYS = (
    f"set {VARIABLE} to the file {FILE} of pytorch-fid ({URL}), to NVIDIA's "
    "inception-2015-12-05.pt, or to an NPZ of arrays net.layers.<TF name>.{weight, beta, mean, var}"
)


class _Module:
    """A module of a TorchScript file: its state, and none of its code."""

    def __init__(self, *args):
        pass


DTYPES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


def _tensor(storage: np.ndarray, offset: int, shape, strides, *rest) -> np.ndarray:
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or last >= len(storage):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    view = np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * storage.itemsize for stride in strides]
    )
    return view.copy()


class _Unpickler(pickle.Unpickler):
    """Rebuilds tensors, modules without their code, lists and dicts; whatever else a pickle names
    is refused."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        super().__init__(archive.open(name))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")

    def find_class(self, module, name):
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in DTYPES:
            return name
        if module == "torch.jit._pickle":
            return lambda value, *rest: value
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): dict,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"unexpected {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid):
        return np.frombuffer(self.archive.read(f"{self.folder}data/{pid[2]}"), DTYPES[pid[1]])


def is_torchscript(path: pathlib.Path) -> bool:
    """Whether the file is a zip with code in it, which a state dict's lacks."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: pathlib.Path) -> Tensors:
    """The tensors of a TorchScript file by their dotted names, read as data: nothing in it is run,
    and torch is not needed."""
    arrays = {}

    def walk(module, prefix):
        for name, value in vars(module).items():
            if isinstance(value, np.ndarray):
                arrays[prefix + name] = value
            elif isinstance(value, _Module):
                walk(value, f"{prefix}{name}.")

    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        walk(_Unpickler(archive, name).load(), "")
    return arrays


def read(path: str | pathlib.Path) -> Tensors:
    """The arrays of an NPZ, of a TorchScript file, or of what `files.read_checkpoint` reads.
    Raises UserError."""
    path = pathlib.Path(path)
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file:
                return dict(np.load(file))
        if is_torchscript(path):
            return read_torchscript(path)
    except Exception as error:  # a damaged file has many ways to fail
        raise UserError(
            f"{path} cannot be read: {' '.join(str(error).split())[:160] or type(error).__name__}"
        ) from None
    return read_checkpoint(path)


def fetch(path: pathlib.Path, url: str = URL) -> pathlib.Path:
    """Downloads pytorch-fid's file of weights to `path`, whole or not at all, its SHA-256 checked;
    returns the path."""
    digest, partial = hashlib.sha256(), path.with_name(f"{path.name}.{os.getpid()}.partial")
    make_folder(path.parent)
    try:
        with urllib.request.urlopen(url, timeout=30) as source, partial.open("wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
        if not path.stem.endswith(f"-{digest.hexdigest()[:8]}"):
            raise UserError(
                f"{url} has the SHA-256 {digest.hexdigest()}, not that of its name; {WAYS}"
            )
        os.replace(partial, path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"the Inception network's weights cannot be fetched ({error}); {WAYS}"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def find(path: str | pathlib.Path = "") -> pathlib.Path:
    """The file of weights: `path`, else the environment's DIFFUSION_JAX_INCEPTION, else
    pytorch-fid's, fetched into the cache.

    Raises UserError, which names the ways to get one, where there is none.
    """
    named = path or os.environ.get(VARIABLE, "")
    if not named:
        cached = cache_folder(FILE)
        return cached if cached.is_file() else fetch(cached)
    if not pathlib.Path(named).is_file():
        raise UserError(f"no file {named} of the Inception network's weights; {WAYS}")
    return pathlib.Path(named)
