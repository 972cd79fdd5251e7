"""Registries: names, the factories they stand for, and the settings that a config may give these.

A factory's signature is the one place of its settings. An argument of a plain type is a setting;
one whose annotation is a noun, such as `Schedule`, is given by the run, by that type. Defaults
stand in the signature, meanings in the docstring's `Args:` block, ranges in the factory's checks.
"""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.core.settings import Mark
from diffusion_jax.core.types import Variance
from diffusion_jax.runs.values import Setting, check_value, plain

RUN_GIVES = "the run's own"


class Registry(NamedTuple):
    """Names and factories. positional: how many leading arguments the run gives, whatever their
    types.

    optional: whether `none` is a name, too. resolve: a name of another program -> its entry, given
    arguments and what it names of the fields beside, or None. near: (name, ours) -> the end of the
    message about an unknown name.
    """

    path: str  # of the config's field, without `config.`
    entries: Mapping[str, Callable]
    positional: int = 0
    optional: bool = False
    resolve: Callable[[str], Any] | None = None
    near: Callable[[str, list[str]], str] = nearest

    def factory(self, name: str) -> Callable | None:
        if name == "none" and self.optional:
            return None
        if name not in self.entries:
            raise UserError(f"config.{self.path} has no {name!r}; {self.near(name, self.names())}")
        return self.entries[name]

    def other(self, name: str) -> Any:
        """What a name of another program stands for; None for ours and for unknown ones."""
        return None if name in self.names() or self.resolve is None else self.resolve(name)

    def names(self) -> list[str]:
        return [*(["none"] if self.optional else []), *self.entries]


class Argument(NamedTuple):
    """A parameter of a factory. noun: the type by which the run gives it, if any."""

    name: str
    noun: Any
    setting: Setting | None
    required: bool


@functools.cache
def arguments(factory: Callable) -> tuple[Argument, ...]:
    """The parameters of a factory, in order."""
    hints, docs, found = typing.get_type_hints(factory, include_extras=True), meanings(factory), []
    for name, parameter in inspect.signature(factory).parameters.items():
        annotation, mark = hints.get(name, Any), Mark()
        if typing.get_origin(annotation) is Annotated:
            annotation, *marks = typing.get_args(annotation)
            mark = next((m for m in marks if isinstance(m, Mark)), mark)
        kind, optional = plain(annotation)
        default = parameter.default
        own = annotation == Variance
        setting = None
        if kind is not None:
            shown = None if own or default is parameter.empty else default
            setting = Setting(name, kind, shown, docs.get(name, ""), mark, optional or own, own)
        noun = annotation
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            noun = next(a for a in typing.get_args(annotation) if a is not type(None))
        found.append(Argument(name, noun, setting, default is parameter.empty))
    return tuple(found)


def meanings(factory: Callable) -> dict[str, str]:
    """What the `Args:` block of a docstring says of each argument."""
    lines, found, current, indent = (inspect.getdoc(factory) or "").splitlines(), {}, "", None
    inside = False
    for line in lines:
        if line.strip() == "Args:":
            inside, indent = True, None
            continue
        if not inside:
            continue
        depth = len(line) - len(line.lstrip())
        if line.strip() and depth == 0:
            inside = False
            continue
        if indent is None and line.strip():
            indent = depth
        named = re.match(r"\s*(\w+): (.*)", line)
        if named and depth == indent:
            current, found[named[1]] = named[1], named[2].strip()
        elif line.strip() and current:
            found[current] += " " + line.strip()
    return found


def settings(registry: Registry, name: str) -> dict[str, Setting]:
    """The settings of an entry, by name."""
    factory = registry.factory(name)
    given = () if factory is None else arguments(factory)[registry.positional :]
    return {a.name: a.setting for a in given if a.setting is not None}


class Component:
    """An entry of a registry with some of its arguments: what a config names.

    `use("edm", sigma_max=40.0)` makes one; a field of a config binds it to its registry. Arguments
    are read and set as attributes, `config.model.dropout = 0.1`; those not given have the
    factory's defaults.
    """

    def __init__(self, entry: str, given: Mapping[str, Any], registry: Registry | None = None):
        object.__setattr__(self, "entry", entry)
        object.__setattr__(self, "given", {})
        object.__setattr__(self, "registry", registry)
        for name, value in given.items():
            setattr(self, name, value)

    entry: str
    given: dict[str, Any]
    registry: Registry | None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.registry is None:
            raise AttributeError(name)
        return self.given[name] if name in self.given else self.setting(name).default

    def __setattr__(self, name: str, value: Any) -> None:
        if self.registry is not None:
            self.setting(name)
        self.given[name] = tuple(value) if isinstance(value, list) else value

    def setting(self, name: str) -> Setting:
        """The setting of that name; UserError with the nearest where the entry has none."""
        assert self.registry is not None
        known = settings(self.registry, self.entry)
        if name not in known:
            hint = nearest(name, known) if known else "it has none"
            raise UserError(
                f"config.{self.registry.path}.{name}: {self.entry} has no argument {name!r}; {hint}"
            )
        return known[name]

    def values(self) -> dict[str, Any]:
        """Every setting's value, given or default; those that the run gives only where given."""
        assert self.registry is not None
        known = settings(self.registry, self.entry)
        return {
            name: self.given.get(name, setting.default)
            for name, setting in known.items()
            if name in self.given or not setting.own
        }

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Component):
            return NotImplemented
        registry = self.registry or other.registry
        if self.entry != other.entry or registry is None:
            return (self.entry, self.given) == (other.entry, other.given)
        known = settings(registry, self.entry).values()
        default = {setting.name: setting.default for setting in known if not setting.own}
        return default | self.given == default | other.given

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # it can be changed

    def __repr__(self) -> str:
        values = self.values() if self.registry else self.given
        return f"{self.entry}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


def use(entry: str, **given: Any) -> Component:
    """An entry of a registry with arguments, for a field of a config."""
    return Component(entry, given)


def bound(registry: Registry, value: Any) -> Component:
    """A name or a component, as a component of that registry; UserError where it has no such
    entry."""
    named = isinstance(value, str)
    if isinstance(value, str):
        value = Component(value, {})
    if not isinstance(value, Component):
        raise UserError(f"config.{registry.path} must name an entry, not {value!r}")
    if other := registry.other(value.entry):
        if other.beside and not named:
            raise UserError(
                f"config.{registry.path}: {value.entry!r} names more than {other.entry}; use the "
                f"name alone, or use({other.entry!r}, ...)"
            )
        value = Component(other.entry, {**other.given, **value.given})
    registry.factory(value.entry)
    return Component(value.entry, value.given, registry)


class Components:
    """Several entries of one registry, each once: what `config.conditioning` is. By name:
    attributes."""

    def __init__(self, registry: Registry, value: Any):
        names = [value] if isinstance(value, (str, Component)) else value
        found = [bound(registry, one) for one in names]
        chosen = {one.entry: one for one in found}
        if len(chosen) < len(found):
            raise UserError(f"config.{registry.path} names an entry twice")
        path = registry.path
        for name, one in chosen.items():
            own = registry._replace(path=f"{path}.{name}")
            chosen[name] = Component(one.entry, one.given, own)
        object.__setattr__(self, "chosen", chosen)
        object.__setattr__(self, "registry", registry)

    chosen: dict[str, Component]
    registry: Registry

    def __setattr__(self, name: str, value: Any) -> None:
        raise UserError(
            f"config.{self.registry.path}.{name} cannot be set: set config.{self.registry.path} "
            "itself, or an argument of one of its entries"
        )

    def __getattr__(self, name: str) -> Component:
        if name.startswith("__") or name in ("chosen", "registry"):
            raise AttributeError(name)
        if name not in self.chosen:
            listed = ",".join([*self.chosen, name])
            self.registry.factory(name)
            path = self.registry.path
            raise UserError(f"config.{path} does not name {name}; add it: config.{path}={listed}")
        return self.chosen[name]

    def __iter__(self) -> Iterator[Component]:
        return iter(self.chosen.values())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Components) and list(self) == list(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return repr(list(self))


def make(component: Component, nouns: Mapping[Any, Any], *positional: Any) -> Any:
    """What the component's factory returns, with the arguments of the config and the nouns of the
    run.

    nouns: type -> the one of that type. Raises UserError, with the field's name, for what the
    factory refuses; None for the name `none`.
    """
    registry = component.registry
    assert registry is not None
    factory = registry.factory(component.entry)
    if factory is None:
        return None
    check(component)
    given = {}
    for argument in arguments(factory)[registry.positional :]:
        if argument.name in component.given:
            given[argument.name] = component.given[argument.name]
        elif _known(argument.noun, nouns):
            given[argument.name] = nouns[argument.noun]
        elif argument.required:
            raise UserError(
                f"config.{registry.path}: {component.entry} needs {argument.name}, "
                "which this run does not have"
            )
    try:
        return factory(*positional, **given)
    except ValueError as error:
        raise UserError(f"config.{registry.path}: {error}") from None


def needs(component: Component, noun: Any) -> bool:
    """Whether the component's factory takes a noun of that type."""
    assert component.registry is not None
    factory = component.registry.factory(component.entry)
    return factory is not None and any(one.noun == noun for one in arguments(factory))


def _known(noun: Any, nouns: Mapping[Any, Any]) -> bool:
    try:
        return noun in nouns
    except TypeError:  # an annotation that cannot be hashed is no noun
        return False


def check(component: Component) -> None:
    """Raises UserError for an argument of the wrong type."""
    assert component.registry is not None
    for name, value in component.given.items():
        check_value(f"{component.registry.path}.{name}", component.setting(name), value)
