"""Sampling grids: the noise levels that a sampler visits, a Level of arrays [N] from noisy to
clean.

The last level is the cleanest that the network sees; from there `samplers.sample` returns the
denoiser's x0."""

from diffusion_jax.core.grids.levels import between, finite, quantized, truncated
from diffusion_jax.core.grids.ratios import (
    align_your_steps,
    at_logsnr,
    exponential,
    karras,
    logsnr,
    noise_range,
    polyexponential,
)
from diffusion_jax.core.grids.times import (
    beta,
    explicit,
    leading,
    quadratic,
    respaced,
    respaced_indices,
    sgm_uniform,
    shifted,
    simple,
    trailing,
    uniform,
)

GRIDS = {
    "uniform": uniform,
    "respaced": respaced,
    "explicit": explicit,
    "karras": karras,
    "logsnr": logsnr,
    "quadratic": quadratic,
    "trailing": trailing,
    "leading": leading,
    "shifted": shifted,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "align_your_steps": align_your_steps,
}

__all__ = [
    "GRIDS",
    "align_your_steps",
    "at_logsnr",
    "between",
    "beta",
    "explicit",
    "exponential",
    "finite",
    "karras",
    "leading",
    "logsnr",
    "noise_range",
    "polyexponential",
    "quadratic",
    "quantized",
    "respaced",
    "respaced_indices",
    "sgm_uniform",
    "shifted",
    "simple",
    "trailing",
    "truncated",
    "uniform",
]
