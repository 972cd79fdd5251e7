"""Settings and their values: of which kind they are, what a word of the command line stands for."""

import math
import types
import typing
from typing import Any, Literal, NamedTuple

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.core.settings import Mark

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    (int,): "whole numbers such as 1,2,2",
    (float,): "numbers such as 0.3,3",
    (str,): "words such as a,b",
}


class Setting(NamedTuple):
    """An argument that a config may give. kind: a key of `KINDS`, or a tuple of the words allowed.

    optional: it may be None, written `none`. own: the run gives it where the config does not.
    """

    name: str
    kind: Any
    default: Any
    doc: str
    mark: Mark = Mark()
    optional: bool = False
    own: bool = False


def plain(annotation: Any) -> tuple[Any, bool]:
    """(kind, optional) of an annotation; the kind is None where it is no plain type."""
    optional = False
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(rest) != 1:
            return None, False
        annotation, optional = rest[0], True
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation), optional
    if typing.get_origin(annotation) is tuple:
        inner = typing.get_args(annotation)
        kind = inner[:1] if inner[1:] == (Ellipsis,) else None
        return (kind if kind in KINDS else None), optional
    return (annotation if annotation in (int, float, bool, str) else None), optional


def named(kind: Any) -> str:
    """What a kind of setting takes, in words."""
    return KINDS[kind] if kind in KINDS else "one of " + ", ".join(map(str, kind))


def check_value(path: str, setting: Setting, value: Any) -> None:
    """Raises UserError for a value of the wrong type. Whole numbers count as numbers, lists as
    tuples."""
    kind = setting.kind
    if value is None and setting.optional:
        return
    if kind in ((int,), (float,), (str,)):
        inner = (int, float) if kind == (float,) else kind
        fits = isinstance(value, (tuple, list)) and all(type(v) in inner for v in value)
    elif isinstance(kind, tuple):
        fits = value in kind
        if not fits and isinstance(value, str):
            raise UserError(f"config.{path} has no {value!r}; {nearest(value, map(str, kind))}")
    else:
        fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise UserError(f"config.{path} must be {named(kind)}, not {value!r}")
    numbers = value if isinstance(value, (tuple, list)) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise UserError(f"config.{path} must be finite, not {value}")


def parse(path: str, setting: Setting, text: str) -> Any:
    """The value that a word of the command line stands for; UserError where it stands for none."""
    kind = setting.kind
    if setting.optional and text.lower() == "none":
        return None
    try:
        if kind in ((int,), (float,), (str,)):
            return tuple(
                kind[0](part.strip()) for part in text.strip("()[]").split(",") if part.strip()
            )
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (ValueError, KeyError):
        raise UserError(f"config.{path} must be {named(kind)}, not {text!r}") from None
