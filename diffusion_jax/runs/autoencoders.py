"""Trained autoencoders, from the workdir of a run or from files of weights."""

import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.codecs import Autoencoders, Coder
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Kinds, PyTree, Shape
from diffusion_jax.interop import autoencoder_names, tiny_names
from diffusion_jax.interop.files import Tensors, fingerprint, read_checkpoint
from diffusion_jax.models.autoencoder import autoencoder
from diffusion_jax.models.tiny_autoencoder import tiny_autoencoder
from diffusion_jax.runs.settings import load
from diffusion_jax.runs.workdir import workdir_path

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
HALVES = ("_encoder", "_decoder")  # ends of the names of TAESD's two files
ENDINGS = (".safetensors", ".pth", ".pt")
PROBE = 64  # pixels a side that stand for images of any size


def open_autoencoder(run: str, weights: str) -> Coder:
    """The autoencoder of a run's workdir or of a file or folder of weights; UserError where there
    is none."""
    if bool(run) == bool(weights):
        raise UserError(
            "config.codec=autoencoder needs config.codec.run, the workdir of a trained "
            "autoencoder, or config.codec.weights, its weights" + (", not both" if run else "")
        )
    path = workdir_path(run or weights, f"config.codec.{'run' if run else 'weights'}")
    files = [one for one in (path, *path.glob("*"), *path.glob("checkpoints/*")) if one.exists()]
    stamp = tuple(sorted((str(one), one.stat().st_mtime_ns) for one in files))
    return _opened(path, bool(run), stamp)


@functools.lru_cache(maxsize=2)
def _opened(path: pathlib.Path, is_run: bool, stamp: tuple) -> Coder:
    with jax.ensure_compile_time_eval():  # it may be asked for while a program is traced
        module, params = of_run(path) if is_run else of_weights(path)
        latent, moments = module.latent, module.moments
        image = jax.ShapeDtypeStruct((1, PROBE, PROBE, module.out_channels), jnp.float32)
        encode = functools.partial(_apply, module, "encode")
        height = jax.eval_shape(encode, params, image).shape[1]
        decode = functools.partial(_apply, module, "decode")
        digest = fingerprint(jax.device_get(params))
    factor = PROBE // height
    return Coder(encode, decode, params, factor, latent, moments, module.out_channels, digest)


def _apply(module: Any, method: str, params: PyTree, x: Any) -> Any:
    return module.apply({"params": params}, x, method=method)


def of_run(workdir: pathlib.Path) -> tuple[Any, PyTree]:
    """(network, averaged parameters) of the run of an autoencoder."""
    # which builds runs, for which this module stands ready
    from diffusion_jax.runs.build import build
    from diffusion_jax.runs.open import restore_params

    if not (workdir / "config.json").is_file():
        raise UserError(
            f"config.codec.run must be the workdir of an autoencoder's run, but {workdir} holds "
            "none"
        )
    config = load(workdir / "config.json")
    if "autoencoder" not in config.model.entry:
        raise UserError(
            f"config.codec.run={workdir} is a run of the network {config.model.entry}, not of an "
            "autoencoder"
        )
    if "dtype" in config.model.values():  # in bfloat16 the decoder's steps can be seen
        config.model.dtype = "float32"
    parts = build(config)
    params = restore_params(config, parts, workdir, ema=True)[0]
    own = {name: tree for name, tree in params.items() if name != autoencoder_names.CRITIC}
    return parts.apply_fn.module, own


def of_weights(path: pathlib.Path) -> tuple[Any, PyTree]:
    """(network, parameters) of files of weights, whose layout their names tell."""
    tensors = read_weights(path)
    entry, settings, channels = infer(tensors)
    factory = tiny_autoencoder if entry == "tiny_autoencoder" else autoencoder
    module = factory(Shape((PROBE, PROBE, channels)), Kinds({}), **settings)
    x = jnp.zeros((1, PROBE, PROBE, channels))
    like = jax.eval_shape(lambda key: module.init(key, x)["params"], jax.random.key(0))
    names = tiny_names if entry == "tiny_autoencoder" else autoencoder_names
    return module, jax.tree.map(jnp.asarray, names.from_names(tensors, like, module))  # pyright: ignore[reportArgumentType]


def infer(tensors: Tensors) -> tuple[str, dict[str, Any], int]:
    """(entry of the network, its settings, channels of the images) of a state dict."""
    if any(name.startswith(("encoder.0.", "encoder.layers.")) for name in tensors):
        return "tiny_autoencoder", *tiny_names.infer_model(tensors)
    return "autoencoder", *autoencoder_names.infer_model(tensors)


def read_weights(path: pathlib.Path) -> Tensors:
    """The state dict of an autoencoder's weights: a file, a folder of diffusers', with its
    config.json, or one of TAESD's two files or the folder of both."""
    if path.is_dir():
        if (path / "config.json").is_file():
            check_config(path / "config.json")
        found = [path / name for name in WEIGHTS if (path / name).is_file()]
        halves = sorted(one for end in ENDINGS for one in path.glob(f"*_encoder{end}"))
        if not found and not halves:
            raise UserError(f"{path} holds no weights of an autoencoder: no {WEIGHTS[0]}")
        path = (found or halves)[0]
    if not path.stem.endswith(HALVES):
        return read_checkpoint(path)
    stem, tensors = path.stem.removesuffix(HALVES[0]).removesuffix(HALVES[1]), {}
    for half in HALVES:
        own = read_checkpoint(path.with_name(f"{stem}{half}{path.suffix}"))
        tensors |= {f"{half[1:]}.{name}": array for name, array in own.items()}
    return tensors


def check_config(path: pathlib.Path) -> None:
    """Raises UserError where diffusers' config.json is of another kind of autoencoder."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    kind = values.get("_class_name", "AutoencoderKL")
    known = ("AutoencoderKL", "VQModel", "AutoencoderTiny")
    if kind not in known:
        raise UserError(f"{path} is of a {kind}; known: {', '.join(known)}")
    if kind != "AutoencoderTiny":
        autoencoder_names.check_config(values)


AUTOENCODERS = Autoencoders(open_autoencoder)
