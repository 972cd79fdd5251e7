"""Images at a lower resolution, by the means of their pixels."""

from typing import Any

from diffusion_jax.core.errors import UserError


def averaged(images: Any, factor: int, rounded: bool) -> Any:
    """The means of factor x factor pixels: [..., H, W, C] -> float32 [..., H / factor, W / factor,
    C].

    rounded: to whole numbers in 0 ... 255, as 8-bit images are. NumPy arrays give NumPy arrays,
    JAX's give JAX's. UserError where the factor does not divide the images' sides.
    """
    *others, height, width, channels = images.shape
    if height % factor or width % factor:
        raise UserError(f"images of {height} x {width} have no means of {factor} x {factor} pixels")
    blocks = (height // factor, factor, width // factor, factor, channels)
    means = images.astype("float32").reshape(*others, *blocks).mean(axis=(-4, -2))
    return means.round().clip(0.0, 255.0) if rounded else means
