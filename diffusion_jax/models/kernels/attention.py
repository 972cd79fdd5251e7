"""Softmax attention (Vaswani et al. 2017, eq. 1) of q, k, v [B, N, heads, d] -> [B, N, heads, d].

Products are of the inputs' precision, sums and the softmax of float32.
"""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp

from diffusion_jax.models.kernels.forms import in_forms

product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def plain(q, k, v):
    """softmax(q k^T / sqrt(d)) v, as written down."""
    logits = product("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(logits, axis=-1)
    return product("bhnm,bmhd->bnhd", weights.astype(v.dtype), v).astype(v.dtype)


def masked_attention(q, k, v, keep):
    """softmax over the keys whose `keep` [B, M] is above 0; exactly 0 where there is none.

    q [B, N, heads, d], k and v [B, M, heads, d]. What the other keys hold changes nothing, bit for
    bit, if it is finite. One form for all platforms, since a context is short."""
    logits = product("bnhd,bmhd->bhnm", q * q.shape[-1] ** -0.5, k)
    there = keep[:, None, None, :] > 0
    logits = jnp.where(there, logits, -jnp.inf)
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(largest), largest, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1.0)
    return product("bhnm,bmhd->bnhd", weights.astype(v.dtype), v).astype(v.dtype)


Kind = Literal["auto", "pallas", "plain"]


def attention(q, k, v, kind: Kind = "auto"):
    """`plain` in the form that is fastest where it is lowered.

    kind: of the fused form, where it takes such arrays. auto: cuDNN's on NVIDIA's GPUs; pallas:
    Pallas's, on these and on TPUs, in a program of one chip, since XLA does not partition them;
    plain: none."""
    if kind == "pallas":
        return chosen(kind, fits_triton(q), fits_tpu(q))(q, k, v)
    return chosen(kind, kind == "auto" and fits_cudnn(q), False)(q, k, v)


@functools.cache
def chosen(kind: Kind, gpu: bool, tpu: bool) -> Callable:
    """`attention` of arrays that a GPU's or a TPU's fused form takes, or does not."""
    fused = {"cuda": cudnn if kind == "auto" else triton} if gpu else {}
    fused |= {"tpu": flash} if tpu else {}
    value = {"cpu": divided_last, **fused, "default": plain}
    return in_forms(value, {**fused, "default": by_keys})


def fits_cudnn(q) -> bool:
    """Whether cuDNN's form takes such arrays: bfloat16, heads of 8, 16, ... 128 channels."""
    return q.dtype == jnp.bfloat16 and q.shape[3] % 8 == 0 and q.shape[3] <= 128


def fits_triton(q) -> bool:
    """Whether Triton's form takes such arrays: those that cuDNN's takes, of whole blocks of
    positions, 16 at least."""
    return fits_cudnn(q) and (q.shape[1] % 128 == 0 or q.shape[1] in (16, 32, 64))


def fits_tpu(q) -> bool:
    """Whether the TPU's form takes such arrays: bfloat16, whole tiles of 128 positions and
    channels."""
    return q.dtype == jnp.bfloat16 and q.shape[1] % 128 == 0 and q.shape[3] % 128 == 0


def divided_last(q, k, v):
    """The CPU's: the sum of a query's weights divides the product with v, not the weights.

    That is d divisions in place of N, and one pass less over the weights."""
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    logits = product("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k)
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    weighted = product("bhnm,bhmd->bhnd", weights.astype(v.dtype), v)
    return (weighted / weights.sum(axis=-1, keepdims=True)).astype(v.dtype).swapaxes(1, 2)


def by_keys(q, k, v):
    """The form that is differentiated where none is fused: a row of weights for each key; q and the
    result with their positions last.

    No product of it, forward or backward, sums over the rows of both its factors, which is the
    slowest form of a product on the CPU. Scaling q and dividing the result in that order keeps XLA
    from turning the products round again. On other platforms the order makes no difference."""
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    queries = q.swapaxes(2, 3) * q.shape[-1] ** -0.5
    logits = product("bhmd,bhdn->bhmn", k, queries)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=2, keepdims=True)))
    weighted = product("bhmd,bhmn->bhdn", v, weights.astype(v.dtype))
    return (weighted / weights.sum(axis=2)[:, :, None]).astype(v.dtype).transpose(0, 3, 1, 2)


def cudnn(q, k, v):
    """cuDNN's flash attention (Dao et al. 2022), which keeps no weights; from Ampere on."""
    with _cudnn_expected():
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


@contextlib.contextmanager
def _cudnn_expected() -> Iterator[None]:
    """JAX asks the machine that traces for its cuDNN. A program that is lowered for another machine
    is traced where there may be none."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    ask = fused.check_cudnn_version

    def expected() -> int:
        try:
            return ask()
        except RuntimeError:
            return 90000  # 9.0, with which flash attention came

    fused.check_cudnn_version = expected
    try:
        yield
    finally:
        fused.check_cudnn_version = ask


def jaxs(name: str):
    """The module of that name among JAX's own Pallas kernels, which are on their way into a package
    of their own, tokamax, that asks for Python 3.12 and JAX 0.11. ValueError once they are gone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return importlib.import_module(f"jax.experimental.pallas.ops.{name}")
        except ImportError:
            raise ValueError(
                f"attention: JAX {jax.__version__} has no jax.experimental.pallas.ops.{name} any "
                "more; use plain"
            ) from None


def triton(q, k, v, interpret: bool = False):
    """Pallas's flash attention, compiled by Triton, for a machine whose cuDNN fails."""
    return jaxs("gpu.attention").mha(
        q, k, v, None, sm_scale=q.shape[-1] ** -0.5, interpret=interpret
    )


def flash(q, k, v):
    """Pallas's flash attention on a TPU."""
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    return (
        jaxs("tpu.flash_attention")
        .flash_attention(q, k, v, sm_scale=q.shape[-1] ** -0.5)
        .swapaxes(1, 2)
    )
