"""How the fields of a config are declared: their meaning, range and freedom, the entries they
name."""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.runs.registries import REGISTRIES
from diffusion_jax.runs.registry import Components, bound


class Range(NamedTuple):
    """The numbers that a setting may be: above, from `least`, up to `most`, below."""

    above: float = -math.inf
    least: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def check(self, path: str, value: Any) -> None:
        """Raises UserError for a number outside."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return
        if self.above < value < self.below and self.least <= value <= self.most:
            return
        words = {"above": "above ", "least": "at least ", "most": "at most ", "below": "below "}
        said = [
            f"{word}{bound:g}" if bound < 2**31 else f"{word}2**32"
            for (name, word) in words.items()
            if math.isfinite(bound := getattr(self, name))
        ]
        raise UserError(f"config.{path} must be {' and '.join(said)}, not {value}")


def setting(
    default: Any, doc: str, free: bool | Callable[[Any], bool] = False, **within: float
) -> Any:
    """A documented field; `main.py list` prints the text.

    free: whether it may change between two starts in one workdir; a function of the new config
    where that depends. within: the arguments of `Range`.
    """
    return field(default=default, metadata={"doc": doc, "free": free, "range": Range(**within)})


def entry(path: str, default: str, doc: str) -> Any:
    """A field that names an entry of REGISTRIES[path]."""
    return field(
        default_factory=functools.partial(bound, REGISTRIES[path], default),
        metadata={"doc": doc, "registry": REGISTRIES[path], "many": False},
    )


def entries(path: str, default: tuple[str, ...], doc: str) -> Any:
    """A field that names any number of entries of REGISTRIES[path]."""
    return field(
        default_factory=functools.partial(Components, REGISTRIES[path], default),
        metadata={"doc": doc, "registry": REGISTRIES[path], "many": True},
    )


def group(cls: type, free: bool = False) -> Any:
    """Settings of their own. free: all of them may change between two starts in one workdir."""
    return field(default_factory=cls, metadata={"free": free})


@dataclass
class Group:
    """Fields by name; one that names an entry of a registry takes the name, or `use(name, ...)`.

    A name of another program sets the fields beside that it names, too, as "DPM++ 2M Karras" the
    grid: what is set later holds."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = {f.name: f for f in dataclasses.fields(self)}
        if name not in known:
            raise UserError(f"config has no {type(self).__name__}.{name}; {nearest(name, known)}")
        registry = known[name].metadata.get("registry")
        other = registry.other(value) if registry and isinstance(value, str) else None
        if registry is not None:
            value = (Components if known[name].metadata["many"] else bound)(registry, value)
        object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        for beside, entry in (other.beside if other else {}).items():
            if beside in self.__dict__:
                setattr(self, beside, entry)
            else:  # while the group is made
                self.__dict__.setdefault("_beside", {})[beside] = entry

    def __post_init__(self) -> None:
        """What a name sets beside holds where the field of its own has the default."""
        for beside, entry in self.__dict__.pop("_beside", {}).items():
            default = next(f for f in dataclasses.fields(self) if f.name == beside).default_factory
            if getattr(self, beside) == default():  # pyright: ignore[reportCallIssue]
                setattr(self, beside, entry)
