"""The settings of a run: dataclasses, their checks, and their JSON round trip.

An experiment file's `get_config()` returns a `Config`; the command line overrides its fields as
`--config.training.batch_size=64`; the resolved one is stored in the workdir as config.json. A field
that names an entry of a registry holds a `Component`: `--config.diffusion.schedule=edm` names one,
`--config.diffusion.schedule.sigma_max=40` sets an argument of it.
"""

import dataclasses
import functools
import json
import math
import pathlib
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from diffusion_jax.core.errors import UserError, nearest
from diffusion_jax.core.settings import Mark
from diffusion_jax.runs import experiment_file
from diffusion_jax.runs.registries import REGISTRIES
from diffusion_jax.runs.registry import (
    Component,
    Components,
    Setting,
    bound,
    check_value,
    parse,
    plain,
    settings,
    use,
)

__all__ = ["Component", "Config", "use"]


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


SEED = {"least": 0, "below": 2**32}


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


class Group:
    """Fields by name; one that names an entry of a registry takes the name, or `use(name, ...)`."""

    def __setattr__(self, name: str, value: Any) -> None:
        known = {f.name: f for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        if name not in known:
            raise UserError(f"config has no {type(self).__name__}.{name}; {nearest(name, known)}")
        registry = known[name].metadata.get("registry")
        if registry is not None:
            value = (Components if known[name].metadata["many"] else bound)(registry, value)
        object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)


@dataclass
class Data(Group):
    source: Any = entry("data.source", "digits", "the data source")
    modality: Any = entry("data.modality", "images", "what an example is")
    shape: tuple[int, ...] = setting((8, 8, 1), "of an example: height, width and channels")
    num_classes: int = setting(10, "number of labels; 0 trains without labels", least=0)
    train_split: str = setting("train", "the split to train on")
    eval_split: str = setting("test", "the held-out split")
    flip: bool = setting(False, "mirror half of the training images, at random")


@dataclass
class Diffusion(Group):
    schedule: Any = entry(
        "diffusion.schedule", "cosine", "the noise schedule, a table or in continuous time"
    )
    prediction: Any = entry("diffusion.prediction", "eps", "what the network predicts")
    variance: Literal["fixed_small", "fixed_large"] = setting(
        "fixed_small", "of the reverse process where the network does not learn it"
    )
    loss: Any = entry("diffusion.loss", "denoising", "the objective, what training minimises")
    weighting: Any = entry(
        "diffusion.weighting",
        "none",
        "of the squared error by noise level; none weighs what is predicted evenly",
    )
    timesteps: Any = entry("diffusion.timesteps", "uniform", "the distribution of t in training")


def _ends_anywhere(config: Any) -> bool:
    """The last step may change, unless the learning rate depends on it."""
    return config.training.decay == "constant"


@dataclass
class Training(Group):
    num_steps: int = setting(100_000, "optimizer steps", free=_ends_anywhere, least=1)
    batch_size: int = setting(128, "examples a step, over all devices", least=1)
    init: str = setting("", "workdir of a run from whose averaged parameters this one starts")
    optimizer: Any = entry("training.optimizer", "adam", "the optimizer")
    learning_rate: float = setting(1e-4, "peak learning rate", above=0)
    warmup_steps: int = setting(1000, "steps over which the learning rate rises from 0", least=0)
    decay: Literal["constant", "cosine"] = setting(
        "constant", "the learning rate after warm-up: constant, or cosine to 0 at the last step"
    )
    clip_norm: float = setting(1.0, "largest global norm of the gradient; 0 does not clip", least=0)
    freeze: str = setting("", "a regular expression: parameters of such names are not trained")
    ema_decay: float = setting(
        0.9999, "decay of the parameters' moving average, after its warm-up", least=0, below=1
    )
    accumulation_steps: int = setting(
        1, "parts that a batch is cut into, one after the other, to save memory", least=1
    )
    parallel: Literal["auto", "pmap", "mesh"] = setting(
        "auto",
        "how a step is put on devices: pmap, of one process; mesh, of any; auto takes what can be",
        free=True,
    )
    fsdp: int = setting(
        1, "devices that share one copy of parameters, averages and moments", free=True, least=1
    )
    steps_per_call: int = setting(
        1, "optimizer steps a dispatch; 1 is best on the CPU, 10 or more on fast devices",
        free=True, least=1,
    )  # fmt: skip
    log_every: int = setting(50, "steps between two lines of metrics", free=True, least=1)
    eval_every: int = setting(
        1000, "steps between two evaluations of the held-out loss; 0 for none", free=True, least=0
    )
    eval_examples: int = setting(
        1024, "examples of the held-out loss, each with a fixed t and noise", free=True, least=1
    )
    sample_every: int = setting(
        1000, "steps between two pictures of samples; 0 for none but the last", free=True, least=0
    )
    checkpoint_every: int = setting(1000, "steps between two checkpoints", free=True, least=1)
    keep_checkpoints: int = setting(2, "newest checkpoints to keep", free=True, least=1)
    keep_every: int = setting(
        0, "also keep the checkpoints of this many steps and its multiples; 0 for none",
        free=True, least=0,
    )  # fmt: skip
    profile_steps: str = setting(
        "", 'steps to profile into workdir/profile, first and last, as in "10:15"', free=True
    )


@dataclass
class Sampling(Group):
    sampler: Any = entry("sampling.sampler", "ancestral", "the sampler")
    grid: Any = entry("sampling.grid", "respaced", "how the steps are spread")
    steps: str = setting(
        "250",
        '"250", "10,15,20", "ddim50" where respaced; values of t where explicit; a number elsewhere',
    )
    quantize: bool = setting(False, "move the grid to whole t, for networks that know no other")
    tolerance: float = setting(
        0.0, "double the steps until samples change by less, root mean square; 0 for as given",
        least=0,
    )  # fmt: skip
    clip_x0: bool = setting(True, "clip the predicted x0 to the data's range in every step")
    threshold: float = setting(
        0.0, "dynamic thresholding's percentile, as 0.995; 0 clips as clip_x0 says",
        least=0, below=1,
    )  # fmt: skip
    guidance: float = setting(0.0, "weight w of guidance, eps = (1 + w) eps_c - w eps_u; 0 is none")
    guide: Any = entry("sampling.guide", "classifier_free", "what guidance leads away from")
    num: int = setting(100, "number of samples", least=1)
    batch_size: int = setting(500, "samples at a time; the samples do not depend on it", least=1)
    seed: int = setting(0, "sample i depends on this and on i alone", **SEED)
    ema: bool = setting(True, "sample with the averaged parameters; False: with the raw ones")
    label: int = setting(-1, "the class to draw; -1 for all in turn")
    gif: bool = setting(False, "write the reverse process of the first samples as a GIF, too")
    predicted: bool = setting(
        False, "in the GIF and the strip show the x0 predicted at every level in place of x"
    )
    strip: bool = setting(
        False, "write the reverse process of the first samples as a strip of pictures, too"
    )


@dataclass
class Likelihood(Group):
    method: Literal["bound", "ode"] = setting(
        "bound", "the variational bound of a table's steps, or the probability-flow ODE"
    )
    split: str = setting("test", "the split whose bits/dim are measured")
    examples: int = setting(0, "its first so many examples; 0 for all", least=0)
    batch_size: int = setting(256, "examples at a time; the result does not depend on it", least=1)
    steps: str = setting("", 'the chain: empty for the whole table, or respaced, as in "250"')
    monte_carlo: int = setting(0, "terms drawn for each example; 0 sums up all of them", least=0)
    seed: int = setting(0, "of the noise", **SEED)
    ema: bool = setting(True, "use the averaged parameters; False: the raw ones")
    budget: int = setting(
        0, "also choose this many steps by dynamic programming; 0 for none", least=0
    )
    probes: int = setting(
        1, "of ode: random vectors that estimate the divergence; 0 computes it exactly", least=0
    )
    ode_tolerance: float = setting(1e-4, "of ode: relative and absolute", above=0)


@dataclass
class Editing(Group):
    task: str = setting("inpaint", "what `edit` does to the images; how is said by config.sampling")
    images: str = setting(
        "", "the images: .npz with `images` and `labels`, or a .png; empty for the split's first"
    )
    split: str = setting("test", "the split that they are taken from where images is empty")
    num: int = setting(10, "how many images, at most; interpolate takes them in pairs", least=1)
    strength: float = setting(
        0.5, "of image_to_image: how far up the grid an image is noised; 1 forgets it",
        above=0, most=1,
    )  # fmt: skip
    mask: str = setting(
        "bottom",
        "of inpaint, what is removed: left, right, top, bottom, centre; or a .png, white where kept",
    )
    resamples: int = setting(10, "of inpaint: how often each step is taken", least=1)
    label: int = setting(
        -1, "of translate: the class to arrive at; -1 for the one after the image's own"
    )


@dataclass
class Evaluation(Group):
    features: str = setting(
        "inception", "what images are compared by: inception, digits, pixels or a .py file"
    )
    weights: str = setting(
        "", "of inception: the file; empty for DIFFUSION_JAX_INCEPTION, or pytorch-fid's, fetched"
    )
    num: int = setting(
        50_000, "samples; a greater number later makes only those that are missing", least=10
    )
    batch_size: int = setting(100, "images at a time; the result does not depend on it", least=1)
    replicates: int = setting(
        20, "of the bootstrap for FID's 95 % intervals; 0 leaves out these and FID-infinity",
        least=0,
    )  # fmt: skip
    subsets: int = setting(100, "random subsets that KID is the mean of", least=1)
    bits_per_dim: int = setting(
        64, "held-out examples whose bits/dim are measured by both bounds; 0 for none", least=0
    )
    memorised: int = setting(
        500, "samples whose nearest training images are sought; 0 for none", least=0
    )
    every: int = setting(
        0, "steps of training between two evaluations of every_num samples; 0 for none", least=0
    )
    every_num: int = setting(1000, "samples of an evaluation during training", least=10)


@dataclass
class Config(Group):
    seed: int = setting(0, "of the parameters, the data's order, t, noise and dropout", **SEED)
    data: Data = group(Data)
    codec: Any = entry("codec", "pixels", "between the data and what the diffusion sees")
    conditioning: Any = entries("conditioning", ("label",), "what the network is told, by name")
    model: Any = entry("model", "unet", "the network")
    diffusion: Diffusion = group(Diffusion)
    training: Training = group(Training)
    sampling: Sampling = group(Sampling, free=True)
    likelihood: Likelihood = group(Likelihood, free=True)
    editing: Editing = group(Editing, free=True)
    evaluation: Evaluation = group(Evaluation, free=True)


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


def owner(config: Config, path: str) -> tuple[Any, str]:
    """(what holds the setting of a dotted path, its name there); UserError where there is none."""
    *above, name = path.split(".")
    holder: Any = config
    for part in above:
        if isinstance(holder, Components) or isinstance(holder, Group) and part in (f.name for f in dataclasses.fields(holder)):
            holder = getattr(holder, part)
        else:
            raise unknown(path)
    if isinstance(holder, Component):
        holder.setting(name)
    elif not isinstance(holder, Group) or name not in (
        f.name
        for f in dataclasses.fields(holder)  # pyright: ignore[reportArgumentType]
    ):
        raise unknown(path)
    return holder, name


def override(config: Config, changes: dict[str, str]) -> None:
    """Sets settings from words of the command line, {dotted path: text}, names of entries first."""
    for path in sorted(changes, key=lambda path: path.count(".")):
        holder, name = owner(config, path)
        text = changes[path]
        if isinstance(holder, Component):
            setattr(holder, name, parse(path, holder.setting(name), text))
            continue
        value = getattr(holder, name)
        if isinstance(value, Components):
            names = [part.strip() for part in text.split(",") if part.strip()]
            setattr(holder, name, [value.chosen.get(one, one) for one in names])
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
            return from_values(json.loads(path.read_text()))
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no stored config: {error}") from None
    config = experiment_file.read(path)
    if not isinstance(config, Config):
        raise UserError(
            f"{path}: get_config() must return a diffusion_jax.runs.config.Config, "
            f"not {type(config).__name__}"
        )
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
    """'path: old -> new' for what makes the two configs' networks, or what they predict, different."""
    parts = ("data.shape", "data.num_classes", "codec", "conditioning", "model")
    parts += ("diffusion.schedule", "diffusion.prediction")
    inside = [path for part in parts for path in (part, f"{part}.")]
    return [
        f"{path}: {was!r} -> {now!r}"
        for path, was, now, leaf in _changes(old, new)
        if leaf.setting.mark.network
        and any(path == one or (one.endswith(".") and path.startswith(one)) for one in inside)
    ]
