"""Latents of an autoencoder, whitened."""

import functools
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.codecs.codec import Codec
from diffusion_jax.codecs.pixels import pixels
from diffusion_jax.codecs.tiles import decode_in_tiles
from diffusion_jax.core.components import component
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.latents import normal_of
from diffusion_jax.core.noise import normal
from diffusion_jax.core.settings import FREE, above
from diffusion_jax.core.types import PyTree
from diffusion_jax.data.spec import Declared


class Coder(NamedTuple):
    """An autoencoder with its parameters.

    encode: (params, images [B, H, W, C] in [-1, 1]) -> [B, H / f, W / f, m], m twice `latent` where
    these are means and logarithms of variances. decode: (params, [B, h, w, latent]) -> images in
    [-1, 1]. factor: f. sha256: of the parameters."""

    encode: Callable
    decode: Callable
    params: PyTree
    factor: int
    latent: int
    moments: int
    channels: int
    sha256: str


class Autoencoders(NamedTuple):
    """The autoencoders that a run has. open: (run, weights) -> the one of a run's workdir, or of a
    file or folder of weights; UserError where there is none."""

    open: Callable[[str, str], Coder]


@component
def autoencoder(
    declared: Declared,
    autoencoders: Autoencoders,
    run: Annotated[str, FREE] = "",
    weights: Annotated[str, FREE] = "",
    factor: int = 8,
    latent: int = 4,
    normal_latents: bool = True,
    sigma_data: float = 0.5,
    mean: tuple[float, ...] = (),
    deviation: tuple[float, ...] = (),
    sha256: str = "",
    tile: Annotated[int, FREE] = 64,
) -> Codec:
    """The latents of an autoencoder, drawn from their mean and deviation by the example's key and
    whitened (Karras et al. 2024, EDM2, appendix B).

    Data are images, or what was kept of them by `main.py encode`: raw means and logarithms of
    variances. A channel of x0 has the mean 0 and the deviation sigma_data. Without a key x0 is that
    of the mean.

    Args:
      run: the workdir of a trained autoencoder.
      weights: in place of a run, a file or folder of weights: diffusers' AutoencoderKL, VQModel or
        AutoencoderTiny, CompVis's, or TAESD's.
      factor: the images' height over the latents'.
      latent: channels of a latent.
      normal_latents: whether the autoencoder gives a mean and a variance, as KL's does; not those
        of VQ, FSQ and TAESD.
      sigma_data: deviation of a channel of x0; 0.5 is EDM's, variance-preserving papers have 1.
      mean: of each channel of the latents; empty measures it once, on the training split.
      deviation: of each channel, likewise.
      sha256: of the autoencoder's parameters, which the run keeps; another one is refused.
      tile: latents a side that are decoded at a time, at most.
    """
    above(0, factor=factor, latent=latent, sigma_data=sigma_data, tile=tile)
    whole, (height, width, *rest) = pixels(declared), (*declared.shape, 0, 0)[:3]
    if len(declared.shape) != 3 or height % factor or width % factor:
        raise ValueError(
            f"latents at 1/{factor} of height and width are of images that {factor} divides, not "
            f"of {declared.shape}"
        )
    for name, values in (("mean", mean), ("deviation", deviation)):
        if len(values) not in (0, latent):
            raise ValueError(f"{name} must be {latent} numbers, one a channel, not {len(values)}")
    if deviation:
        above(0, deviation=min(deviation))
    shape = (height // factor, width // factor, latent)
    kept = (*shape[:2], 2 * latent if normal_latents else latent)

    @functools.cache
    def coder() -> Coder:
        found = autoencoders.open(run, weights)
        check(found, factor, latent, kept[-1], rest[0], sha256)
        return found

    def statistics() -> tuple[np.ndarray, np.ndarray]:
        if not mean or not deviation:
            raise UserError(
                "config.codec.mean and .deviation are empty: a run measures them when it is "
                "trained; else give them, one number a channel"
            )
        return np.array(mean, np.float32), np.array(deviation, np.float32)

    def moments(params, data):
        return coder().encode(params, whole.encode((), None, data))

    def encode(params, keys, data):
        own, spread = statistics()
        if data.shape[1:] == tuple(declared.shape):
            data = moments(params, data)
        elif data.shape[1:] != kept:
            raise ValueError(f"latents must be {kept}, not {data.shape[1:]}")
        z = raw(jnp.asarray(data).astype(jnp.float32), keys, latent)
        return (z - own) * (sigma_data / spread)

    def decoded(params, x0):
        own, spread = statistics()
        found = coder()
        one = functools.partial(found.decode, params)
        z = x0 * (spread / sigma_data) + own
        return whole.decode((), decode_in_tiles(one, z, factor, found.channels, tile))

    on_host = jax.jit(decoded)

    def decode(params, x0):
        return decoded(params, x0) if isinstance(x0, jax.Array) else np.asarray(on_host(params, x0))

    read = lambda: coder().params
    return Codec(encode, decode, shape, None, None, read, moments, kept)


def raw(moments: jax.Array, keys: jax.Array | None, latent: int) -> jax.Array:
    """Latents drawn from their moments [B, h, w, 2 latent], the mean where there are no keys;
    moments [B, h, w, latent] are the latents themselves."""
    if keys is None or moments.shape[-1] == latent:
        return moments[..., :latent]
    mean, log_variance = normal_of(moments)
    return mean + jnp.exp(0.5 * log_variance) * normal(keys, mean.shape[1:])


def check(found: Coder, factor: int, latent: int, kept: int, channels: int, sha256: str) -> None:
    """Raises UserError where an autoencoder is not the one that the settings speak of."""
    for name, said, own in (
        ("config.codec.factor", factor, found.factor),
        ("config.codec.latent", latent, found.latent),
        ("config.codec.normal_latents", kept > latent, found.moments > found.latent),
        ("config.data.shape has channels", channels, found.channels),
    ):
        if said != own:
            raise UserError(f"{name}={said}, but the autoencoder's is {own}")
    if sha256 and sha256 != found.sha256:
        raise UserError(
            f"the autoencoder is another one than this run's: its parameters' SHA-256 is "
            f"{found.sha256[:12]}..., not {sha256[:12]}..."
        )
