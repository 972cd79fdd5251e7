"""All settings of a config, one by one: checked, set from words, compared, written as JSON."""

import dataclasses
import functools
import json
import pathlib
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.core.settings import Mark
from diffusion_jax.runs import experiment_file
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.fields import Group, Range
from diffusion_jax.runs.registries import REGISTRIES
from diffusion_jax.runs.registry import Component, Components, settings
from diffusion_jax.runs.values import Setting, check_value, parse, plain


class Leaf(NamedTuple):
    """A setting of a config. free: whether it may change between two starts in one workdir."""

    path: str
    value: Any
    setting: Setting
    free: bool | Callable[[Any], bool]
    within: Range = Range()
    argument: bool = False  # of a component


MANY = "conditioning"  # the field that names any number of entries
NAMES = (str,)  # the kind of a field that names several entries


def leaves(config: Any, prefix: str = "", free: bool = False) -> Iterator[Leaf]:
    """Every setting of a config in order, the arguments of its components after their names."""
    hints = typing.get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, path, meta = getattr(config, f.name), prefix + f.name, f.metadata
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}.", meta["free"] or free)
        elif isinstance(value, (Component, Components)):
            many = isinstance(value, Components)
            name: Any = tuple(one.entry for one in value) if many else value.entry
            kind = NAMES if many else str
            yield Leaf(path, name, Setting(f.name, kind, None, meta["doc"]), free)
            for one in value if many else (value,):
                yield from _arguments(one, free)
        else:
            kind, optional = plain(hints[f.name])
            own = Setting(f.name, kind, f.default, meta["doc"], Mark(), optional)
            yield Leaf(path, value, own, meta["free"] or free, meta["range"])


def _arguments(component: Component, free: bool) -> Iterator[Leaf]:
    assert component.registry is not None
    values = component.values()
    for name, one in settings(component.registry, component.entry).items():
        path = f"{component.registry.path}.{name}"
        yield Leaf(path, values.get(name), one, free or one.mark.free, argument=True)


def check(config: Config) -> None:
    """Raises UserError for a value of the wrong type or out of its range."""
    for leaf in leaves(config):
        if leaf.setting.kind is not NAMES:
            check_value(leaf.path, leaf.setting, leaf.value)
            leaf.within.check(leaf.path, leaf.value)


@functools.cache
def known_paths() -> frozenset[str]:
    """The dotted paths of all settings that some config has, whatever entries it names."""
    paths = {leaf.path for leaf in leaves(Config())}
    for registry in REGISTRIES.values():
        for name in registry.names():
            own = registry.path if registry.path != MANY else f"{MANY}.{name}"
            paths |= {f"{own}.{argument}" for argument in settings(registry, name)}
    return frozenset(paths)


def unknown(path: str) -> UserError:
    """The error about a path that no config has, with the nearest that one may have."""
    last = path.rpartition(".")[2]
    same = sorted(known for known in known_paths() if known.rpartition(".")[2] == last)
    hint = f"did you mean {same[0]!r}?" if len(same) == 1 else nearest(path, known_paths())
    return UserError(f"config has no field {path!r}; {hint}")


def names(group: Group) -> list[str]:
    return [f.name for f in dataclasses.fields(group)]


def owner(config: Config, path: str) -> tuple[Any, str]:
    """(what holds the setting of a dotted path, its name there); UserError where there is none."""
    *above, name = path.split(".")
    holder: Any = config
    for part in above:
        if (
            isinstance(holder, Components)
            or isinstance(holder, Group)
            and part in (f.name for f in dataclasses.fields(holder))
        ):
            holder = getattr(holder, part)
        else:
            raise unknown(path)
    if isinstance(holder, Component):
        holder.setting(name)
    elif not isinstance(holder, Group) or name not in names(holder):
        raise unknown(path)
    return holder, name


def override(config: Config, changes: dict[str, str]) -> None:
    """Sets settings from words of the command line, {dotted path: text}, names of entries first,
    and of these the ones that may name what is beside them."""
    others = [path for path, registry in REGISTRIES.items() if registry.resolve is not None]
    for path in sorted(changes, key=lambda path: (path.count("."), path not in others)):
        holder, name = owner(config, path)
        text = changes[path]
        if isinstance(holder, Component):
            setattr(holder, name, parse(path, holder.setting(name), text))
            continue
        value = getattr(holder, name)
        if isinstance(value, Components):
            listed = [part.strip() for part in text.split(",") if part.strip()]
            setattr(holder, name, [value.chosen.get(one, one) for one in listed])
        elif isinstance(value, Component):
            setattr(holder, name, value if text == value.entry else text)
        elif dataclasses.is_dataclass(value):
            raise UserError(f"config.{path} is a group of settings; name one: {path}.FIELD=VALUE")
        else:
            leaf = next(leaf for leaf in leaves(config) if leaf.path == path)
            setattr(holder, name, parse(path, leaf.setting, text))


def as_values(value: Any) -> Any:
    """A config, or a part of one, as what JSON holds."""
    if isinstance(value, Component):
        return {"entry": value.entry, **value.values()}
    if isinstance(value, Components):
        return [as_values(one) for one in value]
    if dataclasses.is_dataclass(value):
        return {f.name: as_values(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return list(value) if isinstance(value, tuple) else value


def to_json(config: Config) -> str:
    return json.dumps(as_values(config), indent=2) + "\n"


def from_values(values: dict) -> Config:
    """The Config of what `as_values` made; fields that it lacks take their defaults."""
    config = Config()

    def component(value: Any) -> Component:
        return Component(value["entry"], {k: v for k, v in value.items() if k != "entry"})

    def fill(target: Any, values: dict, prefix: str) -> None:
        for name, value in values.items():
            if name not in (f.name for f in dataclasses.fields(target)):
                raise unknown(prefix + name)
            current = getattr(target, name)
            if dataclasses.is_dataclass(current):
                fill(current, value, f"{prefix}{name}.")
            elif isinstance(current, Components):
                setattr(target, name, [component(one) for one in value])
            elif isinstance(current, Component):
                setattr(target, name, component(value))
            else:
                setattr(target, name, value)

    fill(config, values, "")
    check(config)
    return config


def copy(config: Config) -> Config:
    """A config of its own: a change of one is none of the other."""
    return from_values(as_values(config))


def differences(old: Config, new: Config) -> list[str]:
    """'path: old -> new' for every setting that makes two configs different experiments."""
    return [
        f"{path}: {was!r} -> {now!r}"
        for path, was, now, leaf in _changes(old, new)
        if not (leaf.free(new) if callable(leaf.free) else leaf.free)
    ]


def _changes(old: Config, new: Config) -> Iterator[tuple[str, Any, Any, Leaf]]:
    before = {leaf.path: leaf for leaf in leaves(old)}
    after = {leaf.path: leaf for leaf in leaves(new)}
    for path in dict.fromkeys([*before, *after]):
        was, now = (side[path].value if path in side else None for side in (before, after))
        if was != now:
            yield path, was, now, after.get(path) or before[path]


def other_network(old: Config, new: Config) -> list[str]:
    """'path: old -> new' for what makes the two configs' networks, or what they predict,
    different."""
    parts = ("data.shape", "data.num_classes", "codec", "conditioning", "model")
    parts += ("diffusion.schedule", "diffusion.prediction")
    inside = [path for part in parts for path in (part, f"{part}.")]
    return [
        f"{path}: {was!r} -> {now!r}"
        for path, was, now, leaf in _changes(old, new)
        if leaf.setting.mark.network
        and any(path == one or (one.endswith(".") and path.startswith(one)) for one in inside)
    ]


def load(path: str | pathlib.Path) -> Config:
    """The Config of an experiment file (.py with a `get_config()`) or of a stored config.json."""
    path = pathlib.Path(path)
    if not path.is_file():
        directory = path.parent if path.parent.is_dir() else pathlib.Path("experiments")
        names = [str(p) for p in directory.glob("*.py") if p.name != "__init__.py"]
        hint = f"; {nearest(str(path), names)}" if names else ""
        raise UserError(f"no config file {str(path)!r}{hint}")
    if path.suffix == ".json":
        try:
            return from_values(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no stored config: {error}") from None
    config = experiment_file.read(path)
    if not isinstance(config, Config):
        raise UserError(
            f"{path}: get_config() must return a diffusion_jax.runs.config.Config, "
            f"not {type(config).__name__}"
        )
    return config
