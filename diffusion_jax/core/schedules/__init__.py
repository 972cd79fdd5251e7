"""Noise schedules: how alpha and sigma depend on t, as tables of T steps or in continuous time."""

from diffusion_jax.core.schedules.continuous import (
    cosine_logsnr,
    edm,
    from_logsnr,
    linear_logsnr,
    rectified_flow,
    sub_vp,
    time_shifted,
    ve,
    vp,
)
from diffusion_jax.core.schedules.tables import (
    MAX_BETA,
    cosine,
    cosine_betas,
    from_betas,
    linear,
    linear_betas,
    posterior_tables,
    previous,
    sigmoid,
    sigmoid_betas,
)

BETAS = {"linear": linear_betas, "cosine": cosine_betas, "sigmoid": sigmoid_betas}
SCHEDULES = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "vp": vp,
    "sub_vp": sub_vp,
    "ve": ve,
    "edm": edm,
    "rectified_flow": rectified_flow,
    "linear_logsnr": linear_logsnr,
    "cosine_logsnr": cosine_logsnr,
}

__all__ = [
    "BETAS",
    "MAX_BETA",
    "SCHEDULES",
    "cosine",
    "cosine_betas",
    "cosine_logsnr",
    "edm",
    "from_betas",
    "from_logsnr",
    "linear",
    "linear_betas",
    "linear_logsnr",
    "posterior_tables",
    "previous",
    "rectified_flow",
    "sigmoid",
    "sigmoid_betas",
    "sub_vp",
    "time_shifted",
    "ve",
    "vp",
]
