"""Folders of text encoders, as `transformers` saves them, with weights of a formula."""

import json

import jax
import numpy as np
import safetensors.numpy

from diffusion_jax.models.text import TextEncoder

EXACT = dict(rtol=0, atol=1e-5)

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    *["a", "the", "red", "green", "small", "large", "cat", "dog", "cup", "on", "under"],
]


def weights(layers):
    """Those of tests/reference/README.md: name -> float32 array."""
    found = {}
    for j, (name, shape) in enumerate(layers.items()):
        size = int(np.prod(shape))
        values = np.sin(0.37 * np.arange(size) + 1.3 * j) * 0.6 / np.sqrt(max(1, size // shape[0]))
        found[name] = values.reshape(shape).astype(np.float32)
    return found


def tokenizer():
    """The text of a tokenizer.json: words by spaces, between [CLS] and [SEP]; it pads and cuts to
    sizes of its own, which must not matter."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 1), ("[SEP]", 2)]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    made.enable_padding(length=11)
    made.enable_truncation(4)
    return made.to_str()


def write(folder, case, tensors=None, with_tokenizer=True):
    """The folder of a case of tests/reference/text.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"]))
    tensors = weights(case["layers"]) if tensors is None else tensors
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    if with_tokenizer:
        (folder / "tokenizer.json").write_text(tokenizer())
    return folder


def without_tokenizer(folder, case, tensors=None):
    """The path of such a folder, for what asks for no tokens."""
    return str(write(folder, case, tensors, with_tokenizer=False))


def features(encoder: TextEncoder, ids, mask):
    """What the network gives, as one program."""
    return np.asarray(jax.jit(encoder.apply)(encoder.params, ids, mask))
