"""Captions: text files beside images, tables, arrays of strings, features of tfds."""

import json

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import arrays, folder, report, sources, texts
from diffusion_jax.data.spec import Declared, spec_of


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three images, the last one in a subfolder, that are 0, 1 and 2 all over."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(("1.png", "2.jpeg", "sub/été.png")):
        Image.new("L", (8, 8), i).save(root / name)
    return root


def load(root, captions="auto", **settings):
    declared = Declared((8, 8, 1))
    return folder.folder("all", declared, str(root), labels="none", captions=captions, **settings)


def read(source):
    """value of an image -> its caption; the source's `texts` say the same."""
    found = {}
    for i in range(len(source)):
        example = source[i]
        assert example["text"].dtype == np.uint8 and example["text"].shape == (256,)
        assert bytes(example["text"]) == bytes(source.texts[i])
        found[int(example["image"][0, 0, 0])] = bytes(example["text"]).rstrip(b"\0").decode()
    return found


def test_text_files_beside_images(photos):
    (photos / "1.txt").write_text("a cat\n on  a mat\n", encoding="utf-8-sig")
    (photos / "sub" / "été.txt").write_text("été à la plage", encoding="utf-8")
    (photos / "readme.txt").write_text("not a caption")
    source = load(photos)
    assert read(source) == {0: "a cat on a mat", 1: "", 2: "été à la plage"}
    assert source.notes == [
        "1 other file is left out: 1 .txt",
        "1 of 3 images have no caption, which is an empty text to the network: 2.jpeg",
    ]
    assert report.captions(source) == ["a cat on a mat", "", "été à la plage"]
    told = {"splits": {}, "notes": [], "problems": [], "captions": report.captions(source)}
    lines = report.summary(told, photos).splitlines()
    assert lines[0] == 'captions: "a cat on a mat", "", "été à la plage"'


def test_without_captions_there_is_no_text(photos):
    assert set(spec_of(load(photos))) == {"image", "label"}
    (photos / "1.txt").write_text("a cat")
    silent = load(photos, "none")
    assert set(spec_of(silent)) == {"image", "label"}
    assert silent.notes == ["1 other file is left out: 1 .txt"]
    assert report.captions(silent) == []


def lines(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_metadata_names_the_files_beside_it(photos):
    lines(
        photos / "metadata.jsonl",
        {"file_name": "1.png", "text": "one", "width": 8},
        {"file_name": "2.jpeg", "text": ["two", "another"]},
    )
    (photos / "sub" / "metadata.csv").write_text('file_name,text\nété.png,"three, or 3"\n')
    (photos / "1.txt").write_text("not this")
    assert read(load(photos)) == {0: "one", 1: "two", 2: "three, or 3"}
    assert read(load(photos, "txt")) == {0: "not this", 1: "", 2: ""}


def test_a_table_is_named(photos, tmp_path):
    (photos / "c.csv").write_text('1.png,one\n./2.jpeg,"two, too"\nsub/été.png,\n')
    source = load(photos, "c.csv")
    assert read(source) == {0: "one", 1: "two, too", 2: ""}
    assert not any("other" in note for note in source.notes)
    lines(tmp_path / "far.jsonl", {"file_name": "sub/été.png", "text": "three"})
    assert read(load(photos, str(tmp_path / "far.jsonl"))) == {0: "", 1: "", 2: "three"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "9.png", "text": "a"}',
            "names what is no image in .*: 9.png",
        ),
        ("metadata.jsonl", '{"file_name": "1.png"', "line 1 of .* must be a JSON object"),
        ("metadata.jsonl", '\n{"text": "a"}', "line 2 of .* must be a JSON object"),
        (
            "metadata.csv",
            "file_name,text\n8.png,a\n9.png,b",
            "names what is no image in .*: 8.png, 9.png",
        ),
        ("metadata.csv", "file_name,text\n1.png,a, b", "line 2 of .* needs quotes"),
        ("metadata.csv", "file_name,text\n1.png", "line 2 of .* must be a file and its text"),
        ("1.txt", b"\xff\xfe\x00", "1.txt cannot be read: it is no text in UTF-8"),
    ],
)
def test_captions_that_do_not_fit_are_refused_in_one_line(photos, name, content, message):
    (photos / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        load(photos)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["txt", "captions.csv", "tags"])
def test_captions_that_are_not_there_are_refused(photos, rule):
    with pytest.raises(UserError, match=r"config\.data\.source\.captions"):
        load(photos, rule)


def test_a_table_without_texts_is_no_table_of_captions(photos):
    lines(photos / "metadata.jsonl", {"file_name": "1.png", "objects": [1, 2]})
    source = load(photos)
    assert "text" not in spec_of(source)
    assert source.notes == ["1 other file is left out: 1 .jsonl"]


def test_a_long_caption_is_cut_between_characters_and_noted(photos):
    (photos / "1.txt").write_text("é" * 200, encoding="utf-8")  # 400 bytes
    source = load(photos)
    assert read(source)[0] == "é" * 128
    assert "1 of 3 texts are cut at 256 bytes" in source.notes


def test_other_captions_are_other_data(photos):
    (photos / "1.txt").write_text("one")
    first = load(photos).fingerprint
    assert first == load(photos).fingerprint
    (photos / "1.txt").write_text("two")
    assert load(photos).fingerprint != first


@pytest.mark.parametrize("name", ["text", "texts", "captions"])
def test_an_array_of_strings_is_the_text(tmp_path, name):
    words = np.array(["a cat", "zwei Hunde", "été", "x" * 300])
    images = np.zeros((4, 2, 2, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, **{name: words}, names=words)
    source = arrays.arrays("train", str(tmp_path / "a.npz"))
    assert [bytes(source[i]["text"]).rstrip(b"\0").decode() for i in range(2)] == words[
        1:3
    ].tolist()
    np.testing.assert_array_equal(source.texts[1], source[1]["text"])
    assert set(spec_of(source)) == {"image", "label", "text"}
    cut, left_out = source.notes
    assert cut == "1 of 4 texts are cut at 256 bytes" and "names (<U300 (4,))" in left_out


def test_texts_of_tfds():
    features = tensorflow_datasets.features
    text = features.Text()
    several = features.Sequence({"text": text, "id": features.Scalar(dtype=np.int64)})
    numbers = features.Scalar(dtype=np.int64)
    named = lambda **found: sources.caption_of(features.FeaturesDict(found))
    assert named(id=text, image=features.Image()) == ""
    assert named(id=text, caption=text) == "caption"
    assert named(captions=several) == "captions"
    assert named(text=numbers, captions=features.Sequence(text)) == "captions"
    image = np.zeros((2, 2, 3), np.uint8)
    for given in (
        b"un \xc3\xa9t\xc3\xa9",
        "un été",
        np.array("un été", object),
        np.array([b"un \xc3\xa9t\xc3\xa9", b"b"], object),
        [{"text": "un été", "id": 1}, {"text": "b", "id": 2}],
        {"text": [np.array("un été", object), np.array("b", object)], "id": [1, 2]},
    ):
        example = sources.Tfds([{"image": image, "captions": given}], [], {}, "captions")[0]
        assert texts.decode(example["text"]) == "un été"
    assert texts.decode(sources.Tfds([{"image": image, "c": []}], [], {}, "c")[0]["text"]) == ""
    several = sources.Tfds(None, [], {}, "c", [{"c": b"one"}, {"c": [b"two", b"2"]}])
    several.examples = several.undecoded  # no images are read
    assert [texts.decode(row) for row in several.texts] == ["one", "two"]
    assert sources.Tfds([{"image": image}], [], {}).texts is None
