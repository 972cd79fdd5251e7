"""One formula in several forms, chosen where a program is lowered.

`jax.lax.platform_dependent` chooses among forms, but differentiated it keeps what the backward pass
needs of each of them, and a fused kernel has a derivative in reverse mode only. `in_forms` keeps
the arguments alone, chooses again in the backward pass, and has derivatives of every mode and
order."""

from collections.abc import Callable

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Forms = dict[str, Callable]  # by platform, as cpu, cuda, tpu; "default" for all others


def choose(forms: Forms) -> Callable:
    """f(*arguments) by the form of the platform that it is lowered for."""
    return lambda *arguments: jax.lax.platform_dependent(*arguments, **forms)


def gradients(form: Callable) -> Callable:
    """(arguments, dy) -> the gradients of a form's arguments. Its value is computed once more; XLA
    finds that it was there already."""
    return lambda arguments, dy: jax.vjp(form, *arguments)[1](dy)


def bilinear_gradients(form: Callable) -> Callable:
    """`gradients` of a form that is linear in each of its two arguments: none needs the value."""

    def pull(arguments, dy):
        x, y = arguments
        (dx,) = jax.linear_transpose(lambda x: form(x, y), x)(dy)
        return (dx, *jax.linear_transpose(lambda y: form(x, y), y)(dy))

    return pull


def in_forms(value: Forms, differentiated: Forms, pull: Callable | None = None) -> Callable:
    """f(*arrays) -> array: one formula, whose forms are equal but for rounding.

    value: the forms of the value alone. differentiated: those of value and gradients, in reverse
    mode; the default one serves forward mode and derivatives of higher order. pull: (arguments, dy)
    -> gradients, where they are not to be those of the forms."""
    default = differentiated["default"]
    # what a fused kernel hands to its backward pass is part of the call, so the call is the same
    values = choose({name: _value_to_differentiate(f) for name, f in differentiated.items()})
    plain_pull = pull or gradients(default)
    found = pull or choose({name: gradients(form) for name, form in differentiated.items()})
    evaluate = choose(value)

    @jax.custom_jvp
    def pull_once(arguments, dy):
        return tuple(found(arguments, dy))

    @pull_once.defjvp
    def _(primals, tangents):
        return jax.jvp(lambda *a: tuple(plain_pull(*a)), primals, tangents)

    def push(arguments, moved):
        return jax.jvp(default, arguments, moved)[1]

    @jax.custom_jvp
    def formula(*arguments):
        return evaluate(*arguments)

    @formula.defjvp
    def _(primals, tangents):
        (tangent,) = tangent_p.bind(*primals, *tangents, push=push, pull=pull_once)
        return values(*primals), tangent

    return formula


def _value_to_differentiate(form: Callable) -> Callable:
    return lambda *arguments: jax.vjp(form, *arguments)[0]


# The tangent of a formula, whose transpose is given: push(arguments, tangents), linear in the
# latter, pull(arguments, dy). The arguments come first, then as many tangents.
tangent_p = Primitive("tangent_of_forms")
tangent_p.multiple_results = True


@tangent_p.def_impl
def _push(*arrays, push, pull):
    half = len(arrays) // 2
    return [push(arrays[:half], arrays[half:])]


@tangent_p.def_abstract_eval
def _(*arrays, push, pull):
    (out,) = jax.eval_shape(lambda *a: _push(*a, push=push, pull=pull), *arrays)
    return [ShapedArray(out.shape, out.dtype)]


def _jvp(primals, tangents, push, pull):
    half = len(primals) // 2
    out = tangent_p.bind(*primals, push=push, pull=pull)
    moved = [ad.instantiate_zeros(a) for a in tangents]
    if all(type(a) is ad.Zero for a in tangents[:half]):
        return out, tangent_p.bind(*primals[:half], *moved[half:], push=push, pull=pull)
    whole = lambda *a: _push(*a, push=push, pull=pull)
    return out, jax.jvp(whole, tuple(primals), tuple(moved))[1]


def _transpose(cotangents, *arrays, push, pull):
    half, (dy,) = len(arrays) // 2, cotangents
    if type(dy) is ad.Zero:
        return [None] * len(arrays)
    found = zip(arrays[half:], pull(arrays[:half], dy), strict=True)
    return [None] * half + [g if ad.is_undefined_primal(a) else None for a, g in found]


def _batch(arrays, axes, push, pull):
    return jax.vmap(lambda *a: _push(*a, push=push, pull=pull), axes)(*arrays), [0]


ad.primitive_jvps[tangent_p] = _jvp
ad.primitive_transposes[tangent_p] = _transpose
batching.primitive_batchers[tangent_p] = _batch
mlir.register_lowering(tangent_p, mlir.lower_fun(_push, multiple_results=True))
