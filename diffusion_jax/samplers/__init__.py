"""Samplers, and `sample`, the library's only loop over a reverse chain.

A sampler moves x from a level t to the cleaner level s. The last hop, to sigma = 0, is the denoiser's x0: exact for DDPM,
whose posterior there has mean x0 and variance 0, and for every ODE method here.

`keys` is one PRNG key per example, so that sample number i is the same in any batch.
"""

from diffusion_jax.noise import example_keys, initial_noise, normal
from diffusion_jax.samplers import first_order
from diffusion_jax.samplers.chain import invert, sample
from diffusion_jax.samplers.first_order import ancestral, ddim

SAMPLERS = {**first_order.SAMPLERS}

__all__ = ["SAMPLERS", "ancestral", "ddim", "example_keys", "initial_noise", "invert", "normal", "sample"]
