"""Feature functions: they turn images into the vectors that sets of images are compared by.

Inception's are the field's. They see little in images far from ImageNet's: for such, name another
entry of FEATURES or a Python file of your own as config.evaluation.features. The file defines
`features(images)`, uint8 [B, H, W, C] -> [B, D], and may define `spatial(images)` -> [B, E] and
`probabilities(images)` -> [B, K], of K classes, for the Inception Score."""

import functools
import hashlib
import pathlib
import runpy
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.data import sources
from diffusion_jax.devices.parallel import map_examples, place
from diffusion_jax.evaluation import inception, inception_files
from diffusion_jax.evaluation.metrics import softmax
from diffusion_jax.interop.files import fingerprint

KINDS = ("features", "spatial", "probabilities")


class Features(NamedTuple):
    """A feature function.

    apply: uint8 [B, H, W, C] -> {"features": [B, D]} and, where there are any, "spatial" [B, E] and
    "probabilities" [B, K], float32. record: what tells its vectors from those of another: name,
    preprocessing and a hash of the weights."""

    apply: Callable[[np.ndarray], dict[str, np.ndarray]]
    record: dict

    @property
    def name(self) -> str:
        return pathlib.Path(self.record["features"]).stem


def inception_network(weights: str = "") -> Features:
    """FID's network of 2015, 2048 features, on all devices; sFID's 2023; class probabilities where
    the file has logits."""
    tensors = inception_files.read(inception_files.find(weights))
    host, logits = inception.to_params(tensors), inception.logits(tensors)
    params = place(jax.tree.map(np.asarray, host))
    mapped = map_examples(inception.activations)

    def apply(images):
        pool, spatial = mapped(params, images)
        found = {"features": pool, "spatial": spatial}
        return found if logits is None else found | {"probabilities": softmax(pool @ logits)}

    preprocessing = (
        "uint8, grey as three channels; TensorFlow 1's bilinear resize to 299 x 299; "
        "(x - 128) / 128"
    )
    record = {"features": "inception", "preprocessing": preprocessing, "weights": fingerprint(host)}
    return Features(apply, record | {"classes": 0 if logits is None else logits.shape[1]})


def digits_network(weights: str = "") -> Features:
    """64 features of 8 x 8 digits: the hidden layer of a classifier that scikit-learn trains on the
    real ones, in seconds."""
    if weights:
        raise UserError(
            "config.evaluation.weights are those of inception; the digits' network trains its own"
        )
    parameters = _trained_on_digits()

    def apply(images):
        (w1, b1), (w2, b2) = parameters
        if images.shape[1:] != (8, 8, 1):
            raise UserError(
                "the digits' features are of 8 x 8 x 1 images, not "
                f"{' x '.join(map(str, images.shape[1:]))}"
            )
        hidden = np.maximum(images.reshape(len(images), -1) / 255.0 @ w1 + b1, 0.0)
        return {"features": hidden, "probabilities": softmax(hidden @ w2 + b2)}

    rounded = jax.tree.map(lambda a: a.astype(np.float32), parameters)
    return Features(
        apply, {"features": "digits", "preprocessing": "x / 255", "weights": fingerprint(rounded)}
    )


@functools.cache
def _trained_on_digits() -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    train = sources.digits("train")
    model = MLPClassifier((64,), random_state=0, max_iter=1000, tol=1e-5)
    with threadpool_limits(1):  # its products are tiny: several threads wait for each other
        model.fit(train.images.reshape(len(train), -1) / 255.0, train.labels)
    return list(zip(model.coefs_, model.intercepts_, strict=True))


def pixels(weights: str = "") -> Features:
    """The pixels themselves, from 0 to 1."""
    if weights:
        raise UserError("config.evaluation.weights are those of inception; pixels have none")
    apply = lambda images: {"features": images.reshape(len(images), -1) / np.float32(255.0)}
    return Features(apply, {"features": "pixels", "preprocessing": "x / 255", "weights": ""})


def from_file(path: pathlib.Path) -> Features:
    """The functions of a user's Python file. UserError where it has no `features` or they return
    what they should not."""
    try:
        found = runpy.run_path(str(path))
    except Exception as error:
        raise UserError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    functions = {name: found[name] for name in KINDS if callable(found.get(name))}
    if "features" not in functions:
        raise UserError(f"{path} must define features(images), uint8 [B, H, W, C] -> [B, D]")

    def apply(images):
        made = {name: np.asarray(function(images)) for name, function in functions.items()}
        for name, array in made.items():
            if array.ndim != 2 or len(array) != len(images):
                raise UserError(
                    f"{name} of {path} must return [{len(images)}, D], not {list(array.shape)}"
                )
        return made

    return Features(
        apply, {"features": str(path), "weights": hashlib.sha256(path.read_bytes()).hexdigest()}
    )


FEATURES = {"inception": inception_network, "digits": digits_network, "pixels": pixels}


def load(name: str, weights: str = "") -> Features:
    """The feature function config.evaluation.features names: an entry of FEATURES, or a Python
    file. weights: Inception's."""
    if name.endswith(".py"):
        if not pathlib.Path(name).is_file():
            raise UserError(f"config.evaluation.features={name}: there is no such file")
        return from_file(pathlib.Path(name))
    if name not in FEATURES:
        raise UserError(
            f"config.evaluation.features has no {name!r}; {nearest(name, FEATURES)}, or the path "
            "of a .py file"
        )
    return FEATURES[name](weights)
