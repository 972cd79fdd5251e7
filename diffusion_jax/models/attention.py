"""Self-attention over the positions of an image."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.layers import GroupNorm


@jax.custom_jvp
def attend(q, k, v):
    """Softmax attention (Vaswani et al. 2017, eq. 1) of q, k, v [B, heads, N, d] -> [B, heads, N,
    d], softmax in float32.

    The sum of a query's weights divides the product with v, not the weights: d divisions in place
    of N."""
    logits = jnp.einsum(
        "bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
    )
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    product = jnp.einsum(
        "bhnm,bhmd->bhnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (product / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


@attend.defjvp
def _(primals, tangents):
    return jax.jvp(attend_by_keys, primals, tangents)


def attend_by_keys(q, k, v):
    """`attend` where it is differentiated: weights a row for each key; q and the result with their
    positions last.

    So no product, forward or backward, sums over the rows of both its factors, XLA's slowest form
    of it on the CPU; scaling q and dividing the result in that order keeps XLA from turning the
    products round again."""
    queries = q.swapaxes(2, 3) * q.shape[-1] ** -0.5
    logits = jnp.einsum("bhmd,bhdn->bhmn", k, queries, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=2, keepdims=True)))
    product = jnp.einsum(
        "bhmd,bhmn->bhdn", v, weights.astype(v.dtype), preferred_element_type=jnp.float32
    )
    return (product / weights.sum(axis=2)[:, :, None]).astype(v.dtype).swapaxes(2, 3)


class SelfAttention(nn.Module):
    """GroupNorm, multi-head softmax attention over H x W positions, zero-initialised projection,
    residual sum.

    ADM's AttentionBlock (Dhariwal & Nichol 2021, section 3). The softmax is computed in float32.
    """

    heads: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        if self.heads < 1 or c % self.heads:
            raise ValueError(f"an attention of {c} channels cannot be cut into {self.heads} heads")
        a = (
            GroupNorm(name="norm")(x).astype(self.dtype).reshape(b * h * w, c)
        )  # one axis: the gradient of qkv sums over it
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(a).reshape(
            b, h * w, 3 * self.heads, c // self.heads
        )
        a = attend(*jnp.split(qkv.transpose(0, 2, 1, 3), 3, axis=1)).transpose(0, 2, 1, 3)
        out = nn.Dense(c, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")
        return x + out(a.reshape(b * h * w, c)).reshape(b, h, w, c)
