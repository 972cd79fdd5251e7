"""The diffusion transformer, DiT (Peebles & Xie 2023), with what U-ViT (Bao et al. 2023) and JiT
(Li & He 2025) changed of it. It knows nothing of diffusion: (x, t, cond) -> an image of
features."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, zeros

from diffusion_jax.core.settings import FREE, TRAINING, above, at_least, check_dropout
from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.models import conditions
from diffusion_jax.models.embeddings import grid_rotations, grid_sinusoids
from diffusion_jax.models.kernels.attention import Kind
from diffusion_jax.models.reuse import Reuse, check_blocks
from diffusion_jax.models.transformer import Block, MLPKind, Norm, NormKind, linear
from diffusion_jax.models.unet import MECHANISMS, check_dtype

Size = Literal["S", "B", "L", "XL"]
SIZES = {  # DiT's table 1: width, depth, heads
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
Positions = Literal["sincos", "rotary", "none"]
Told = Literal["adaln", "tokens"]
SINUSOIDS = 256  # of t


def patches(x, size: int):
    """Images [B, H, W, C] -> their patches [B, N, size * size * C], row by row."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // size, size, width // size, size, c).swapaxes(2, 3)
    return x.reshape(b, -1, size * size * c)


def image(h, size: int, height: int, width: int):
    """The inverse of `patches`."""
    h = h.reshape(len(h), height // size, width // size, size, size, -1).swapaxes(2, 3)
    return h.reshape(len(h), height, width, -1)


class DiT(nn.Module):
    """Images [B, H, W, C], t [B], cond or None -> float32 [B, H, W, out_channels].

    An image is cut into patches of `patch` x `patch` pixels, which become tokens through a linear
    layer; with `bottleneck` through two, the first of so many features (JiT).
    `positions` says how tokens know their places: fixed sinusoids are added, queries and keys are
    rotated, or not at all. `told` says how t and the conditions enter: the sum of their embeddings
    modulates every block, as does that of a context, to which every block attends; or each is one
    token before the patches', a context's tokens among them. With `long_skips` each block of the
    second half takes in what its mirror image in the first half gave. The output is 0 at
    initialisation. Whatever `dtype` is, parameters, embeddings, the arithmetic of norms and
    softmax, the last layer and the output are float32; `dtype` is that of the tokens and of the
    blocks' layers. `remat`: the backward pass computes every block's inside again in place of
    keeping it. With `reuse` the result is (output, deep features), see `Reuse`: what the blocks in
    the middle add to the tokens."""

    out_channels: int
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    norm: NormKind = "layer"
    qk_norm: bool = False
    positions: Positions = "sincos"
    mlp: MLPKind = "gelu"
    told: Told = "adaln"
    long_skips: bool = False
    bottleneck: int = 0
    time_scale: float = 1.0  # the network embeds time_scale * t
    dropout: float = 0.0
    kinds: conditions.Told = ()  # the conditions and how they enter
    context: int = 256  # features of a token, where a condition is a sequence
    context_depth: int = 1
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    attention: Kind = "auto"  # its form, where one is fused

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        cond: Mapping | None = None,
        *,
        train: bool = False,
        reuse: Reuse | None = None,
    ) -> Any:
        height, width = x.shape[1:3]
        check_patches(height, width, self.patch)
        rows, columns = height // self.patch, width // self.patch
        t = self.time_scale * jnp.asarray(t)
        context = conditions.context_of(cond, self.kinds, self.context, self.context_depth)
        x = patches(conditions.with_images(x, cond, self.kinds), self.patch)

        if self.bottleneck:
            x = linear(self.bottleneck, self.dtype, "bottleneck", use_bias=False)(x)
        h = linear(self.width, self.dtype, "patch")(x)
        if self.positions == "sincos":
            h += grid_sinusoids(rows, columns, self.width).astype(self.dtype)

        embedding, others = None, 0
        if self.told == "adaln":
            told = (t, cond, SINUSOIDS, self.width, self.kinds, context)
            embedding = conditions.embed(*told)
        else:
            told = conditions.embeddings(t, cond, SINUSOIDS, self.width, self.kinds)
            tokens = jnp.stack(told, axis=1)
            if context is not None:
                tokens = jnp.concatenate([tokens, self.context_tokens(context)], axis=1)
            h, context = jnp.concatenate([tokens.astype(h.dtype), h], axis=1), None
            others = tokens.shape[1]
        rotations = None
        if self.positions == "rotary":
            rotations = grid_rotations(rows, columns, self.width // self.heads, others)

        block_class = nn.remat(Block, static_argnums=(5,)) if self.remat else Block  # `train`
        settings = (self.norm, self.qk_norm, self.mlp, self.dropout, self.dtype, self.attention)
        half, skips = self.depth // 2, []

        def blocks(h, start: int, stop: int):
            for i in range(start, stop):
                if self.long_skips and i >= self.depth - half:
                    both = jnp.concatenate([h, skips.pop()], axis=-1)
                    h = linear(self.width, self.dtype, f"skip{i}")(both)
                block = block_class(self.heads, *settings, name=f"block{i}")
                h = block(h, embedding, context, rotations, train)
                if self.long_skips and i < half:
                    skips.append(h)
            return h

        if reuse is None:
            h, deep = blocks(h, 0, self.depth), None
        else:
            check_blocks(reuse.blocks, (self.depth - 1) // 2)
            ends = (reuse.blocks, self.depth - reuse.blocks)
            h = blocks(h, 0, ends[0])
            deep = blocks(h, *ends) - h if reuse.deep is None else reuse.deep
            h = blocks(h + deep, ends[1], self.depth)

        h, scale, shift = h[:, others:].astype(jnp.float32), None, None
        if embedding is not None:
            modulation = linear(2 * self.width, jnp.float32, "modulation_out", zeros)
            shift, scale = jnp.split(modulation(nn.silu(embedding)), 2, axis=-1)
        h = Norm(self.norm, name="norm_out")(h, scale, shift)
        out = linear(self.patch**2 * self.out_channels, jnp.float32, "dense_out", zeros)
        output = image(out(h), self.patch, height, width)
        return output if reuse is None else (output, deep)

    def context_tokens(self, context: conditions.Context):
        """A context's tokens [B, L, width], a learned one in place of those that are not there, so
        that attention needs no mask."""
        tokens = nn.Dense(self.width, name="context")(context.tokens)
        absent = self.param("absent", normal(0.02), (self.width,), jnp.float32)
        return jnp.where(context.keep[..., None] > 0, tokens, absent)


def check_patches(height: int, width: int, patch: int) -> None:
    """Raises ValueError for images that cannot be cut into whole patches."""
    if height % patch or width % patch:
        raise ValueError(f"images of {height} x {width} cannot be cut into patches of {patch}")


def dit(
    shape: Shape,
    kinds: Kinds,
    size: Size = "S",
    patch: int = 2,
    width: int = 0,
    depth: int = 0,
    heads: int = 0,
    norm: NormKind = "layer",
    qk_norm: bool = False,
    positions: Positions = "sincos",
    mlp: MLPKind = "gelu",
    told: Told = "adaln",
    long_skips: bool = False,
    bottleneck: int = 0,
    learned_variance: bool = False,
    time_scale: float = 1.0,
    dropout: Annotated[float, TRAINING] = 0.0,
    dtype: Annotated[str, TRAINING] = "float32",
    remat: Annotated[bool, FREE] = False,
    attention: Annotated[Kind, FREE] = "auto",
    context: int = 256,
    context_depth: int = 1,
) -> DiT:
    """The diffusion transformer of DiT, U-ViT and JiT, for images of height, width and channels.

    Args:
      size: DiT's S, B, L or XL: 384, 768, 1024 or 1152 features, 12, 12, 24 or 28 blocks, 6, 12, 16
        or 16 heads.
      patch: pixels of a patch's side; divides height and width.
      width: features of a token; 0: the size's.
      depth: blocks; 0: the size's.
      heads: attention heads; 0: the size's.
      norm: layer or rms.
      qk_norm: queries and keys are RMS-normed head by head.
      positions: how tokens know their places: sincos, fixed sinusoids that are added; rotary,
        queries and keys turned by row and column; none.
      mlp: gelu, or swiglu with as many parameters.
      told: how t and conditions enter: adaln, by modulating every block; tokens, as such beside the
        patches'.
      long_skips: U-ViT's, from each block of the first half to its mirror image in the second.
      bottleneck: features between the two layers that embed a patch, as JiT's; 0: one layer.
      learned_variance: twice the output channels, the second half for the variance.
      time_scale: the network embeds time_scale * t: 1000 for a continuous t in [0, 1].
      dropout: dropout rate of what attention and MLP add, at least 0 and below 1.
      dtype: precision of the computation, float32 or bfloat16; parameters stay float32.
      remat: compute each block again in the backward pass, to save memory; the results stay.
      attention: its form in bfloat16: auto, cuDNN's on NVIDIA's GPUs; pallas, Pallas's on these,
        for where cuDNN fails, and on TPUs, where it takes the lengths; plain, the formula, as
        everywhere else.
      context: features of a token of conditions that are sequences, such as text; divisible by 4.
      context_depth: layers of a transformer over these tokens before the network takes them.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be height, width and channels, not {shape}")
    at_least(0, width=width, depth=depth, heads=heads, bottleneck=bottleneck)
    above(0, patch=patch, time_scale=time_scale)
    check_patches(shape[0], shape[1], patch)
    width, depth, heads = (a or b for a, b in zip((width, depth, heads), SIZES[size], strict=True))
    if width % heads:
        raise ValueError(f"a width of {width} cannot be cut into {heads} heads")
    if positions == "sincos" and width % 4:
        raise ValueError(f"sincos positions need a width divisible by 4, not {width}")
    if positions == "rotary" and width // heads % 4:
        raise ValueError(
            f"rotary positions need heads of channels divisible by 4, not {width // heads}"
        )
    check_dropout(dropout)
    conditions.check_context(context, context_depth)
    check_dtype(dtype)
    return DiT(
        out_channels=shape[-1] * (2 if learned_variance else 1),
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        norm=norm,
        qk_norm=qk_norm,
        positions=positions,
        mlp=mlp,
        told=told,
        long_skips=long_skips,
        bottleneck=bottleneck,
        time_scale=time_scale,
        dropout=dropout,
        kinds=conditions.taken(kinds, "dit", MECHANISMS),
        context=context,
        context_depth=context_depth,
        dtype=jnp.dtype(dtype),
        remat=remat,
        attention=attention,
    )
