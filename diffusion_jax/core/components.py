"""Components: what factories such as `schedules.cosine(num_steps=1000)` return, known by the call.

Calls of a factory with equal arguments give one and the same object, which is therefore hashable
and can be a static argument of a jitted function. Its repr reads as the call.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


class Function:
    """A function that a factory returned, with the call as its repr."""

    def __init__(self, function: Callable, call: str):
        functools.update_wrapper(self, function)
        self.function, self.call = function, call

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return self.call


FUNCTIONS = (types.FunctionType, functools.partial, Function, type(jax.jit(abs)))


def component(factory: Callable[P, R]) -> Callable[P, R]:
    """The factory, whose equal calls give one object with a repr that reads as the call.

    Arguments are bound to the signature with its defaults, so that cosine(1000) is
    cosine(num_steps=1000); an int given for a float is that float. A call whose arguments cannot be
    hashed, such as arrays, gives a new object. What is made is a NamedTuple, of which an instance
    with another repr is returned and whose `_replace` makes a plain one, or a function; anything
    else is returned as it is. The factory may be called in a jitted function: it is evaluated at
    once, and no tracer is kept."""
    signature = inspect.signature(factory, eval_str=True)

    @functools.lru_cache(maxsize=None, typed=True)
    def cached(x64: bool, *names_and_values):
        with jax.ensure_compile_time_eval():
            return made(dict(zip(names_and_values[::2], names_and_values[1::2], strict=True)))

    def made(values: dict):
        bound = inspect.BoundArguments(signature, values)  # pyright: ignore[reportArgumentType]
        call = f"{factory.__name__}({', '.join(f'{k}={_text(v)}' for k, v in values.items())})"
        return _known_by(factory(*bound.args, **bound.kwargs), call)

    @functools.wraps(factory)
    def call(*args: P.args, **kwargs: P.kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = {k: _plain(v, signature.parameters[k]) for k, v in bound.arguments.items()}
        try:
            hash(tuple(values.values()))
        except TypeError:
            return made(values)
        x64 = jnp.result_type(float) == np.float64  # arrays that a component holds are of its kind
        return cached(x64, *(part for item in values.items() for part in item))

    return call


def is_component(value: Any) -> bool:
    """Whether a value is known by its call."""
    return getattr(value, "call", None) is not None


def _plain(value: Any, parameter: inspect.Parameter) -> Any:
    """A number of NumPy as Python's, and an int as a float where the annotation says float."""
    value = value.item() if isinstance(value, np.generic) else value
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and parameter.annotation in (float, float | None) else value


def _text(value: Any) -> str:
    """An argument as in a call: an array by its type and shape, a function by its name."""
    if isinstance(value, np.ndarray | jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple) and hasattr(value, "_fields") and not is_component(value):
        parts = ", ".join(map(_text, value))
        return f"{type(value).__name__}({parts})"
    return value.__qualname__ if isinstance(value, types.FunctionType) else repr(value)


def _known_by(result: Any, call: str) -> Any:
    if isinstance(result, FUNCTIONS):
        function = result.function if isinstance(result, Function) else result
        return Function(function, call)
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        named = _named(getattr(type(result), "plain", type(result)))(*result)
        named.call = call
        return named
    return result


@functools.cache
def _named(plain: Any) -> Any:
    """The NamedTuple's class with a place for the call, which `_replace` does not take along."""

    def __repr__(self) -> str:
        return self.__dict__.get("call") or plain.__repr__(self)

    methods = {"__repr__": __repr__, "plain": plain, "_make": staticmethod(plain._make)}
    return type(plain.__name__, (plain,), methods)
