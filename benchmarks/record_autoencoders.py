"""Records what diffusers computes with small autoencoders, for tests/interop.

    python benchmarks/record_autoencoders.py tests/reference/autoencoders.npz

Needs diffusers and PyTorch. The weights are those of `drawn`, so the file holds names,
shapes, inputs and outputs alone.
"""

import importlib
import json
import sys

import numpy as np

LEVELS = dict(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(32, 64),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=32,
)
TINY = dict(
    encoder_block_out_channels=(8, 8),
    decoder_block_out_channels=(8, 8),
    num_encoder_blocks=(1, 2),
    num_decoder_blocks=(2, 1),
)
CONFIGS = {
    "kl": ("AutoencoderKL", LEVELS),
    "vq": ("VQModel", LEVELS | {"num_vq_embeddings": 16}),
    "tiny": ("AutoencoderTiny", TINY),
}


def drawn(shapes: dict) -> dict:
    """Tensors of these shapes: weights normal over the root of their inputs, scales about 1, biases
    about 0, by NumPy's generator whose numbers do not change."""
    found = {}
    for j, (name, shape) in enumerate(shapes.items()):
        values = np.random.RandomState(j).standard_normal(shape)
        if len(shape) > 1:
            values /= np.sqrt(np.prod(shape[1:]))
        else:
            values = 0.1 * values + (name.endswith("weight"))
        found[name] = values.astype(np.float32)
    return found


def peer(kind: str):
    """(the model of diffusers, its tensors) of a kind."""
    diffusers, torch = (importlib.import_module(name) for name in ("diffusers", "torch"))

    name, config = CONFIGS[kind]
    model = getattr(diffusers, name)(**config).eval()
    tensors = drawn({n: tuple(a.shape) for n, a in model.state_dict().items()})
    model.load_state_dict({n: torch.from_numpy(a) for n, a in tensors.items()})
    return model, tensors


def outputs(kind: str, model, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(what x is encoded as, moments of `kl`; what z is decoded to), all with channels last."""
    torch = importlib.import_module("torch")

    turned = lambda a: torch.from_numpy(a).permute(0, 3, 1, 2)
    with torch.no_grad():
        encoded = model.encode(turned(x))
        if kind == "kl":
            encoded = encoded.latent_dist.parameters
        else:
            encoded = encoded.latents
        decoded = model.decode(turned(z)).sample
    return tuple(a.permute(0, 2, 3, 1).numpy() for a in (encoded, decoded))


def inputs() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    return x, random.normal(size=(2, 4, 6, 4)).astype(np.float32)


def main(path: str) -> None:
    x, z = inputs()
    found = {"x": x, "z": z}
    for kind in CONFIGS:
        model, tensors = peer(kind)
        found[f"{kind}/encoded"], found[f"{kind}/decoded"] = outputs(kind, model, x, z)
        shapes = {name: list(a.shape) for name, a in tensors.items()}
        found[f"{kind}/shapes"] = np.array(json.dumps(shapes))
    np.savez_compressed(path, allow_pickle=False, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
