"""Captions composed of glyphs, colours, places and tones, and what a picture of each shows."""

import collections
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from diffusion_jax.data.glyphs import TONES, Glyph

COLOURS = {  # of backgrounds
    "red": (226, 60, 60),
    "orange": (255, 150, 30),
    "yellow": (255, 232, 80),
    "green": (70, 185, 80),
    "turquoise": (90, 220, 220),
    "blue": (60, 100, 230),
    "purple": (150, 70, 200),
    "pink": (255, 170, 210),
    "gray": (150, 150, 150),
}
WHITE = (255, 255, 255)
SIZES = {"small": 0.4, "large": 0.65}  # of the picture's side
PLACES = {  # x and y, from 0 (a glyph at the left or top edge) to 1
    "at the top left": (0.0, 0.0),
    "at the top right": (1.0, 0.0),
    "in the middle": (0.5, 0.5),
    "at the bottom left": (0.0, 1.0),
    "at the bottom right": (1.0, 1.0),
}
HELD_OUT = 5  # one combination of so many is never trained on


class Shown(NamedTuple):
    """A glyph in a picture. number: of the glyph. size: its side as a part of the picture's.
    x, y: from 0 (its edge at the left or top) to 1 (at the right or bottom)."""

    number: int
    size: float = 0.94
    x: float = 0.5
    y: float = 0.5
    tone: str = ""


class Combination(NamedTuple):
    """values: what is composed with the glyphs, name -> value, such as background -> blue."""

    template: str
    caption: str
    shown: tuple[Shown, ...]
    colour: tuple[int, int, int] = WHITE
    values: tuple[tuple[str, str], ...] = ()


def a(name: str) -> str:
    """A name with its article; none where it is a plural or begins with one."""
    head = re.split(r" (?:with|of|in|on|behind|and|at|without) ", name)[0]
    if re.search(r"(?<![sui'])s$", head) and not re.search(r"\b(lens|gas|iris)$", head):
        return name
    return f"{'an' if re.match(r'[aeio]|u[mpn](?!i)|hour', name) else 'a'} {name}"


def plain(glyphs: Sequence[Glyph]) -> Iterator[Combination]:
    """A glyph on white: "a red heart"."""
    for i, glyph in enumerate(glyphs):
        yield Combination("plain", a(glyph.name), (Shown(i),))


def background(glyphs: Sequence[Glyph]) -> Iterator[Combination]:
    """A glyph on a colour: "a camel on blue"."""
    for i, glyph in enumerate(glyphs):
        for name, colour in COLOURS.items():
            values = (("background", name),)
            caption = f"{a(glyph.name)} on {name}"
            yield Combination("background", caption, (Shown(i),), colour, values)


def place(glyphs: Sequence[Glyph]) -> Iterator[Combination]:
    """A glyph of a size at a place: "a small camel at the top left"."""
    for i, glyph in enumerate(glyphs):
        for size, side in SIZES.items():
            for where, (x, y) in PLACES.items():
                caption = f"{a(f'{size} {glyph.name}')} {where}"
                values = (("size", size), ("place", where))
                yield Combination("place", caption, (Shown(i, side, x, y),), WHITE, values)


def pair(glyphs: Sequence[Glyph], beside: int) -> Iterator[Combination]:
    """Two glyphs, left and right: "a camel beside a red heart". Each stands to the left of `beside`
    others."""
    count = len(glyphs)
    for i, glyph in enumerate(glyphs):
        for k in range(min(beside, count - 1)):
            j = (i + 1 + k * (count - 1) // min(beside, count - 1)) % count
            caption = f"{a(glyph.name)} beside {a(glyphs[j].name)}"
            yield Combination("pair", caption, (Shown(i, 0.5, 0.0), Shown(j, 0.5, 1.0)))


def tone(glyphs: Sequence[Glyph]) -> Iterator[Combination]:
    """A hand and a colour of its skin: "a thumbs up with dark skin"."""
    for i, glyph in enumerate(glyphs):
        for name in TONES if glyph.category == "hands" else ():
            caption = f"{a(glyph.name)} with {name} skin"
            shown = (Shown(i, tone=name),)
            yield Combination("tone", caption, shown, WHITE, (("tone", name),))


TEMPLATES: dict[str, Callable[..., Iterator[Combination]]] = {
    "plain": plain,
    "background": background,
    "place": place,
    "pair": pair,
    "tone": tone,
}


def combinations(
    glyphs: Sequence[Glyph], templates: Sequence[str], beside: int
) -> list[Combination]:
    """All of the templates, in order."""
    found = []
    for name in templates:
        more = {"beside": beside} if name == "pair" else {}
        found += TEMPLATES[name](glyphs, **more)
    return found


def held_out(found: Sequence[Combination]) -> list[bool]:
    """Whether each combination is for testing alone: one in HELD_OUT, by a hash of its caption, so
    that others that come and go change none.

    Plain glyphs are not, nor is the first of a value (of a template) that would else be unseen."""
    out = [one.template != "plain" and digest(one.caption) % HELD_OUT == 0 for one in found]
    seen = collections.Counter()
    for one, test in zip(found, out, strict=True):
        seen.update({(one.template, *value): not test for value in one.values})
    for i, one in enumerate(found):
        keys = [(one.template, *value) for value in one.values]
        if out[i] and not all(seen[key] for key in keys):
            out[i] = False
            seen.update(keys)
    return out


def digest(text: str) -> int:
    """The same number on every machine, below 2**64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
