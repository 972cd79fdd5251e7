"""The critic of patches, which tells reconstructions from images (Isola et al. 2017, section
3.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.layers import GroupNorm


class PatchCritic(nn.Module):
    """Images [B, H, W, C] -> float32 [B, h, w, 1], high where a patch looks real.

    `layers` convolutions halve the image, each but the first with twice the channels, up to 8 times
    the first's; two more see larger patches. Group norm stands in the place of the paper's batch
    norm, so that an example's answer does not depend on its batch; nothing is kept."""

    channels: int = 64
    layers: int = 3
    norm: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(features: int, stride: int, name: str) -> nn.Conv:
            init = nn.initializers.normal(0.02)
            of = {"dtype": self.dtype, "kernel_init": init, "name": name}
            return nn.Conv(features, (4, 4), stride, "SAME", **of)

        h = nn.leaky_relu(conv(self.channels, 2, "conv0")(x), 0.2)
        for i in range(1, self.layers + 1):
            stride = 2 if i < self.layers else 1
            h = conv(self.channels * min(2**i, 8), stride, f"conv{i}")(h)
            h = GroupNorm(name=f"norm{i}")(h) if self.norm else h
            h = nn.leaky_relu(h, 0.2)
        return conv(1, 1, "conv_out")(h).astype(jnp.float32)
