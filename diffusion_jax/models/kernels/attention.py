"""Softmax attention (Vaswani et al. 2017, eq. 1) of q, k, v [B, heads, N, d] -> [B, heads, N, d].

Products are of the inputs' precision, sums and the softmax of float32.
"""

import functools

import jax
import jax.numpy as jnp

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def plain(q, k, v):
    """softmax(q k^T / sqrt(d)) v, as written down."""
    logits = product("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(logits, axis=-1)
    return product("bhnm,bhmd->bhnd", weights.astype(v.dtype), v).astype(v.dtype)


@jax.custom_jvp
def attention(q, k, v):
    """`plain` in the form that is fastest where it is lowered."""
    return jax.lax.platform_dependent(q, k, v, cpu=divided_last, default=plain)


@attention.defjvp
def _(primals, tangents):
    return jax.jvp(by_keys, primals, tangents)


def divided_last(q, k, v):
    """The CPU's: the sum of a query's weights divides the product with v, not the weights.

    That is d divisions in place of N, and one pass less over the weights."""
    logits = product("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    weighted = product("bhnm,bhmd->bhnd", weights.astype(v.dtype), v)
    return (weighted / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


def by_keys(q, k, v):
    """The form that is differentiated: a row of weights for each key; q and the result with their
    positions last.

    No product of it, forward or backward, sums over the rows of both its factors, which is the
    slowest form of a product on the CPU. Scaling q and dividing the result in that order keeps XLA
    from turning the products round again. On other platforms the order makes no difference."""
    queries = q.swapaxes(2, 3) * q.shape[-1] ** -0.5
    logits = product("bhmd,bhdn->bhmn", k, queries)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=2, keepdims=True)))
    weighted = product("bhmd,bhmn->bhdn", v, weights.astype(v.dtype))
    return (weighted / weights.sum(axis=2)[:, :, None]).astype(v.dtype).swapaxes(2, 3)
