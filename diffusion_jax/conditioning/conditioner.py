"""The noun of a conditioner, and several of them as one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from diffusion_jax.core.types import Batch, Cond, Kind, Kinds


class Conditioner(NamedTuple):
    """What a network is told beside x and t, and how it is told nothing.

    kinds: name of the condition -> how it can enter a network. reads: the entries of a batch that
    it needs. train: (keys [B] or None, batch) -> (batch, cond); by its own key each example's
    condition is dropped with its own probability, and augmentation changes the data, too; without
    keys neither happens. null: cond -> the cond of "nothing is known", of the same tree; None
    where the network was never trained for that. example: n -> a cond of n examples of the right
    shapes, for init, plan and export. prepare: a source -> one whose examples have what `reads`
    names, where that is computed on the host, as tokens are of a text; None for a source as it is.
    sample: (keys [B] or None, batch) -> cond, what is told where examples are drawn; None for what
    `train` tells without keys.
    """

    kinds: Kinds
    reads: tuple[str, ...]
    train: Callable[[Any, Batch], tuple[Batch, Cond]]
    null: Callable[[Cond], Cond] | None
    example: Callable[[int], Cond]
    prepare: Callable[[Any], Any] | None = None
    sample: Callable[[Any, Batch], Cond] | None = None


def told_in_sampling(conditioner: Conditioner, keys: Any, batch: Batch) -> dict[str, Any]:
    """What the network is told where examples are drawn, each by its own key of keys [B], or None
    for no randomness."""
    if conditioner.sample is None:
        return dict(conditioner.train(None, batch)[1])
    return dict(conditioner.sample(keys, batch))


def joined(conditioners: Sequence[Conditioner]) -> Conditioner:
    """Several conditioners as one; ValueError where two tell something of one name."""
    kinds: dict[str, Kind] = {}
    for one in conditioners:
        if twice := kinds.keys() & one.kinds.keys():
            raise ValueError(f"two conditions have the name {min(twice)!r}")
        kinds |= one.kinds

    def train(keys, batch):
        cond: dict[str, Any] = {}
        for one in conditioners:
            batch, told = one.train(keys, batch)
            cond |= told
        return batch, cond

    def null(cond):
        for one in conditioners:
            if one.null is not None:
                cond = {
                    **cond,
                    **one.null({name: cond[name] for name in one.kinds if name in cond}),
                }
        return cond

    def example(n):
        return {name: value for one in conditioners for name, value in one.example(n).items()}

    def sample(keys, batch):
        found = (told_in_sampling(one, keys, batch) for one in conditioners)
        return {name: value for told in found for name, value in told.items()}

    def prepare(source):
        for one in conditioners:
            source = one.prepare(source) if one.prepare else source
        return source

    return Conditioner(
        kinds=Kinds(kinds),
        reads=tuple(dict.fromkeys(name for one in conditioners for name in one.reads)),
        train=train,
        null=null if any(one.null for one in conditioners) else None,
        example=example,
        prepare=prepare if any(one.prepare for one in conditioners) else None,
        sample=sample if any(one.sample for one in conditioners) else None,
    )


class Prepared:
    """A source whose examples have further entries, which `entries` makes of an example.

    notes: () -> what a user should know of these, computed where it is asked for."""

    def __init__(
        self,
        source: Any,
        entries: Callable[[Any], dict[str, Any]],
        notes: Callable[[], list[str]] = list,
    ):
        self.source, self.entries, self.own_notes = source, entries, notes

    @property
    def notes(self) -> list[str]:
        return [*getattr(self.source, "notes", []), *self.own_notes()]

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        example = self.source[i]
        return {**example, **self.entries(example)}

    def bucketed(self):
        """The same for a source in buckets."""
        return Prepared(self.source.bucketed(), self.entries, self.own_notes)

    def __getattr__(self, name):
        if name == "source":  # as of a copy that is being made
            raise AttributeError(name)
        return getattr(self.source, name)
