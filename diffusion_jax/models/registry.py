"""The networks by name: (shape of an example, kinds of the conditions, settings) -> flax module.

The module is called as module.apply({"params": params}, x, t, cond, train=...) and returns float32.
"""

from diffusion_jax.models.autoencoder import autoencoder
from diffusion_jax.models.dit import dit
from diffusion_jax.models.edm2 import edm2
from diffusion_jax.models.mlp import mlp
from diffusion_jax.models.tiny_autoencoder import tiny_autoencoder
from diffusion_jax.models.unet import unet

MODELS = {
    "unet": unet,
    "dit": dit,
    "edm2": edm2,
    "mlp": mlp,
    "autoencoder": autoencoder,
    "tiny_autoencoder": tiny_autoencoder,
}
