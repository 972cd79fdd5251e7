"""The source `folder`: your own images."""

import os
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import folder as folders
from diffusion_jax.data import images, pipeline, scan
from diffusion_jax.data.spec import Declared

GRAY, COLOUR = (8, 8, 1), (8, 8, 3)


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """What is remembered of files lies in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(path: pathlib.Path, value=0, size=(8, 8), mode="L", **how) -> pathlib.Path:
    """An image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **how)
    return path


def load(root, split="all", shape=GRAY, **settings):
    declared = Declared(shape, settings.pop("num_classes", 0))
    return folders.folder(split, declared, str(root), **settings)


def values(source):
    """The mean of every image."""
    return [round(float(source[i]["image"].mean())) for i in range(len(source))]


@pytest.fixture
def odd(tmp_path):
    """A folder of everything that is found in folders."""
    root = tmp_path / "odd"
    put(root / "cat" / "2.png", 20)
    put(root / "cat" / "10.png", 100)
    put(root / "cat" / "10.jpg", 101, quality=95)
    put(root / "cat" / "deep" / "er" / "图像 é.png", 30)
    put(root / "dog" / "cmyk.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)
    put(root / "dog" / "rgba.png", (0, 0, 0, 0), mode="RGBA")
    put(root / "dog" / "palette.gif", 3, mode="P")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("blue", "red")]
    frames[0].save(root / "dog" / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(root / "dog" / "still.webp", lossless=True)
    frames[0].save(root / "dog" / "still.bmp")
    deep = np.full((8, 8), 40_000, np.uint16)
    deep[0, 0] = 65_535
    Image.fromarray(deep).save(root / "dog" / "sixteen.png")
    turned = np.zeros((8, 16), np.uint8)
    turned[:, :8] = 250  # bright at the left; turned by 90 degrees clockwise, it is at the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(turned).save(root / "dog" / "turned.jpg", exif=exif, quality=95)
    whole = put(root / "dog" / "truncated.png", 7, size=(64, 64))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(noise).save(whole)
    whole.write_bytes(whole.read_bytes()[:1500])
    (root / "dog" / "text.png").write_text("no image at all")
    (root / "dog" / "notes.txt").write_text("a note")
    put(root / "dog" / ".hidden.png")
    put(root / ".hidden" / "1.png")
    (root / "empty").mkdir()
    return root


def test_everything_found_in_folders_is_read_or_named(odd):
    source = load(odd, shape=COLOUR, unreadable="skip")
    assert source.names == [
        "cat/2.png",
        "cat/10.jpg",
        "cat/10.png",
        "cat/deep/er/图像 é.png",
        *(
            f"dog/{name}"
            for name in ("cmyk.jpg", "moving.gif", "palette.gif", "rgba.png", "sixteen.png")
        ),
        *(f"dog/{name}" for name in ("still.bmp", "still.webp", "turned.jpg")),
    ]
    assert source.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(source.labels, [0] * 4 + [1] * 8)
    assert source.faults.keys() == {"dog/text.png", "dog/truncated.png"}
    assert source.faults["dog/text.png"] == "no image"
    image = {
        name.rpartition("/")[2]: source[i]["image"].astype(int)
        for i, name in enumerate(source.names)
    }
    assert all(array.shape == COLOUR for array in image.values())
    np.testing.assert_allclose(
        image["cmyk.jpg"], np.broadcast_to([255, 0, 0], COLOUR), atol=4
    )  # no cyan
    assert (image["rgba.png"] == 255).all()  # what is transparent is white
    assert (image["moving.gif"] == [0, 0, 255]).all()  # its first frame
    assert (image["still.webp"] == [0, 0, 255]).all()
    assert (
        image["sixteen.png"][1:] == round(40_000 / 257)
    ).all()  # scaled, where clipping would make 255
    assert (image["sixteen.png"][0, 0] == 255).all()
    np.testing.assert_allclose(
        image["turned.jpg"][:3], 250, atol=8
    )  # upright: 16 high, its middle 8 rows are cut out
    np.testing.assert_allclose(image["turned.jpg"][5:], 0, atol=8)
    assert tuple(source.sizes[source.names.index("dog/turned.jpg")]) == (16, 8)
    text, others, empty = source.notes
    assert text.startswith("2 of 14 files")
    assert others == "1 other file is left out: 1 .txt"
    assert "text.png (no image), dog/truncated.png (" in text
    assert empty == "no class, since they hold no image that can be read: empty"


def test_gray_is_the_luma_of_a_colour(tmp_path):
    put(tmp_path / "a.png", (255, 0, 0), mode="RGB")
    assert values(load(tmp_path)) == [round(0.299 * 255)]


def test_files_that_cannot_be_read_stop_the_program_and_ten_are_named(tmp_path):
    put(tmp_path / "good.png")
    for i in range(12):
        (tmp_path / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        load(tmp_path)
    text = str(error.value)
    assert text.startswith(
        f"12 of 13 files in {tmp_path} cannot be read: bad0.png (no image), bad1.png"
    )
    assert "bad9.png (no image), and 2 more" in text
    assert "config.data.source.unreadable=skip" in text
    assert "bad10" not in text


@pytest.mark.parametrize("resize", ["center_crop", "stretch"])
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (100, 37), (37, 100), (5, 31), (4000, 9)])
def test_a_constant_image_stays_constant(resize, size):
    image = images.to_array(Image.new("RGB", size, (10, 200, 77)), (8, 12, 3), resize)
    assert image.shape == (8, 12, 3)
    assert (image == [10, 200, 77]).all()


def ramp(height, width):
    """Brightness rises from the left to the right: pixel x is that of its middle, x + 1/2."""
    return np.broadcast_to((np.arange(width) + 0.5) * (256 / width), (height, width))


@pytest.mark.parametrize("size", [(64, 64), (63, 63), (40, 40), (9, 9)])
def test_a_ramp_keeps_its_mean_and_its_slope(size):
    image = Image.fromarray(np.round(ramp(*size) - 0.5).astype(np.uint8))
    for resize in ("center_crop", "stretch"):
        small = images.to_array(image, GRAY, resize)[..., 0].astype(float)
        assert small.mean() == pytest.approx(np.asarray(image).mean(), abs=1.5)
        # away from the border, where cubic interpolation has no neighbours; halving an odd width
        # moves columns by up to a half
        np.testing.assert_allclose(small[:, 2:-2], ramp(8, 8)[:, 2:-2], atol=6)


def test_a_sixteenth_of_the_size_is_the_mean_of_blocks():
    """Twice halved is the mean of 4 x 4 pixels, rounded four times: by row and by column, twice."""
    noise = np.random.default_rng(1).integers(0, 256, (32, 32)).astype(np.uint8)
    blocks = noise.reshape(8, 4, 8, 4).mean((1, 3))
    np.testing.assert_allclose(
        images.to_array(Image.fromarray(noise), GRAY, "center_crop")[..., 0], blocks, atol=2.0
    )


def test_the_crop_is_central():
    wide = np.zeros((8, 20), np.uint8)
    wide[:, 6:14] = np.arange(1, 9) * 10
    crop = images.to_array(Image.fromarray(wide), GRAY, "center_crop")
    np.testing.assert_array_equal(crop[..., 0], wide[:, 6:14])
    crop = images.to_array(Image.fromarray(wide.T.copy()), GRAY, "center_crop")
    np.testing.assert_array_equal(crop[..., 0], wide[:, 6:14].T)
    squeezed = images.to_array(Image.fromarray(wide), GRAY, "stretch")[..., 0].astype(float)
    assert squeezed[:, 0].max() < 10  # the dark margins are still there
    assert squeezed.mean() == pytest.approx(wide.mean(), abs=1.0)


def test_images_stay_as_they_are_where_nothing_is_to_be_resized(tmp_path):
    put(tmp_path / "a.png", 5)
    assert values(load(tmp_path, resize="none")) == [5]
    put(tmp_path / "b.png", 5, size=(9, 8))
    for cache in (False, True):
        with pytest.raises(
            UserError, match=r"1 of 2 images are not 8 x 8.* such as b.png \(8 x 9\)"
        ):
            load(tmp_path, resize="none", cache=cache)


def test_labels_by_folders_in_natural_order(tmp_path):
    for name in ("10", "9", "Ä", "b"):
        put(tmp_path / name / "deep" / "1.png")
    source = load(tmp_path, num_classes=4)
    assert source.class_names == ["9", "10", "b", "Ä"]
    assert [source.class_names[label] for label in source.labels] == ["9", "10", "b", "Ä"]
    put(tmp_path / "loose.png")
    with pytest.raises(
        UserError,
        match=r"1 of 5 images have no label, which needs a folder of its class.*: loose.png",
    ):
        load(tmp_path, num_classes=4)
    assert load(tmp_path, num_classes=0).num_classes == 0  # without classes no label is missed


def test_labels_by_prefix(tmp_path):
    for name in ("dog_1.png", "a/cat_2_3.png", "b/dog_1.jpg"):
        put(tmp_path / name)
    source = load(tmp_path, labels="prefix")
    assert source.names == ["a/cat_2_3.png", "b/dog_1.jpg", "dog_1.png"]
    assert [source.class_names[label] for label in source.labels] == ["cat", "dog", "dog"]
    put(tmp_path / "dog.png")
    with pytest.raises(UserError, match="a label and an underscore before its name: dog.png"):
        load(tmp_path, labels="prefix")
    assert load(tmp_path, labels="none").num_classes == 0


@pytest.mark.parametrize(
    "text",
    [
        "1.png,x\na/é.png,y\n",
        "file,label\r\n1.png,x\r\na/é.png,y\r\n",
        '﻿label,file\ny,"a/é.png"\nx,./1.png\n',
    ],
)
def test_labels_by_a_table(tmp_path, text):
    put(tmp_path / "1.png")
    put(tmp_path / "a" / "é.png")  # é as e and an accent, as macOS writes it
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8", newline="")
    source = load(tmp_path, labels="labels.csv")
    assert [source.class_names[label] for label in source.labels] == ["x", "y"]
    assert source.notes == []
    assert load(tmp_path, labels=str(tmp_path / "labels.csv")).num_classes == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png\n", "line 1 of .* must be a file and its label"),
        ("1.png,\n", "line 1 of .* must be a file and its label"),
        ("1.png,x\n1.png,y\n", "gives 1.png two labels: x and y"),
        ("2.png,x\n", "1 of 1 images have no label, which needs a line in labels.csv.*: 1.png"),
        (b"\xff\xfe\x00", "cannot be read as a CSV file in UTF-8"),
        (None, "must be folders, prefix, none or a CSV file, but there is no 'labels.csv'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, message):
    put(tmp_path / "1.png")
    if text is not None:
        (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load(tmp_path, labels="labels.csv")


def test_lines_of_a_table_that_name_no_image_are_told(tmp_path):
    put(tmp_path / "1.png")
    (tmp_path / "labels.csv").write_text("1.png,x\n2.png,z\n")
    source = load(tmp_path, labels="labels.csv")
    assert source.class_names == ["x"]
    assert source.notes == ["1 lines of labels.csv name no image that is read: 2.png"]


def test_subfolders_are_the_splits_and_share_their_classes(tmp_path):
    for i, name in enumerate(
        ("train/a/1", "train/b/1", "test/b/1", "test/c/1", "val/a/1", "other/1")
    ):
        put(tmp_path / f"{name}.png", i * 10)
    (tmp_path / "test" / "d").mkdir()
    parts = {split: load(tmp_path, split) for split in ("train", "test", "val", "all")}
    assert {split: values(part) for split, part in parts.items()} == {
        "train": [0, 10],
        "test": [20, 30],
        "val": [40],
        "all": [20, 30, 0, 10, 40],
    }
    assert all(part.class_names == ["a", "b", "c"] for part in parts.values())
    np.testing.assert_array_equal(parts["test"].labels, [1, 2])
    assert (
        parts["train"].notes[0]
        == "1 images lie in none of the splits train, val, test and are left out"
    )
    assert parts["train"].notes[1].endswith("read: d")
    with pytest.raises(UserError, match="has the splits all, train, val, test, not 'valid'"):
        load(tmp_path, "valid")


@pytest.mark.parametrize(
    ("train", "held_out", "split"),
    [("Train", "validation", "val"), ("train", "dev", "val"), ("TRAINING", "Testing", "test")],
)
def test_usual_names_of_splits_are_no_classes_whatever_their_case(tmp_path, train, held_out, split):
    for i, name in enumerate((f"{train}/cat", f"{train}/dog", f"{held_out}/cat")):
        put(tmp_path / name / "1.png", 10 * i)
    parts = {name: load(tmp_path, name, num_classes=2) for name in ("train", "test", split)}
    assert parts["train"].class_names == ["cat", "dog"]
    assert values(parts["train"]) == [0, 10]
    assert values(parts["test"]) == values(parts[split]) == [20]
    assert values(load(tmp_path, held_out)) == [20]  # by the folder's own name, too
    assert set(parts["train"].splits) == {"all", "train", "test", split}


def test_a_lone_train_folder_is_one_and_the_same_when_named_itself(tmp_path):
    for i in range(100):
        put(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", i)
    (tmp_path / "annotations").mkdir()
    train, test = load(tmp_path, "train", num_classes=2), load(tmp_path, "test", num_classes=2)
    assert train.class_names == ["a", "b"]
    assert len(test) and sorted(values(train) + values(test)) == list(range(100))
    (note, *_) = train.notes
    assert note.startswith('train is the split "train"; "test" is one in 20 of its images')
    assert values(load(tmp_path / "train", "test")) == values(test)


def test_a_train_among_other_classes_is_a_vehicle(tmp_path):
    for i, name in enumerate(("bus", "car", "train")):
        put(tmp_path / name / "1.png", i)
    source = load(tmp_path)
    assert source.class_names == ["bus", "car", "train"]
    assert source.notes == ["train is a class, no split, since there are others: bus, car"]


def test_held_out_images_beside_classes_are_not_trained_on(tmp_path):
    for i, name in enumerate(("cat/1", "dog/1", "test/cat/1")):
        put(tmp_path / f"{name}.png", i)
    train = load(tmp_path, "train", num_classes=2)
    assert (train.class_names, values(train)) == (["cat", "dog"], [0, 1])
    assert values(load(tmp_path, "test")) == [2]
    assert train.notes == ['there is no train folder: "train" is what lies outside of test']
    put(tmp_path / "held" / "valid" / "1.png")
    with pytest.raises(UserError, match="the split 'train' of the 1 images in .* is empty"):
        load(tmp_path / "held", "train")


def test_files_that_are_no_images_are_counted_aloud(tmp_path):
    put(tmp_path / "1.png")
    for i in range(10):
        (tmp_path / f"{i}.TXT").touch()
    for name in ("a.json", "b.json", "README"):
        (tmp_path / name).touch()
    assert load(tmp_path).notes == ["13 other files are left out: 10 .txt, 2 .json, 1 nameless"]


def test_tiff_and_jfif_are_read(tmp_path):
    pages = [Image.new("L", (8, 8), value) for value in (10, 200)]
    pages[0].save(tmp_path / "1.tif", save_all=True, append_images=pages[1:])  # its first page
    Image.new("RGB", (8, 8), (20, 20, 20)).save(tmp_path / "2.TIFF")
    Image.fromarray(np.full((8, 8), 30 * 257, np.uint16)).save(tmp_path / "3.tif")
    put(tmp_path / "jpeg.jpg", 40, quality=95).rename(tmp_path / "4.jfif")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "5.tif")
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "6.tif")
    source = load(tmp_path, unreadable="skip")
    assert values(source) == [10, 20, 30, 40]
    assert "are floats" in source.faults["5.tif"]
    assert "more than 16 bits" in source.faults["6.tif"]


def sixteen_bit_png(path, pixels, transparent):
    """A gray PNG of 16 bits with one transparent value, which Pillow does not write."""
    part = lambda kind, data: b"".join(
        (struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data)))
    )
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = [(b"IHDR", head), (b"tRNS", struct.pack(">H", transparent))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(part(*each) for each in parts))


@pytest.mark.parametrize("shape", [GRAY, COLOUR])
def test_the_transparent_colour_of_16_bits_is_white(tmp_path, shape):
    pixels = np.full((8, 8), 25_700)
    pixels[0] = 5  # 0 in 8 bits, as 6 is, which is not transparent
    pixels[1] = 6
    sixteen_bit_png(tmp_path / "1.png", pixels, 5)
    image = load(tmp_path, shape=shape)[0]["image"]
    assert (image[0] == 255).all() and (image[1] == 0).all() and (image[2:] == 100).all()


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (3_001, 7), (13, 502)])
def test_a_long_image_is_cut_before_it_is_resized(monkeypatch, size):
    smooth = np.random.default_rng(0).integers(80, 176, size[::-1], np.uint8)  # no overshoot
    image, resize, made = Image.fromarray(smooth), Image.Image.resize, []
    scale = max(16 / image.height, 24 / image.width)
    w, h = round(image.width * scale), round(image.height * scale)
    box = ((w - 24) // 2, (h - 16) // 2, (w - 24) // 2 + 24, (h - 16) // 2 + 16)
    whole = image.resize((w, h), Image.Resampling.BICUBIC).crop(box)

    def watched(self, size, *arguments, **more):
        made.append(size[0] * size[1])
        return resize(self, size, *arguments, **more)

    monkeypatch.setattr(Image.Image, "resize", watched)
    cut = images.center_crop(image, 16, 24)
    assert max(made) <= images.LONG * 16 * 24
    np.testing.assert_allclose(np.asarray(cut).astype(int), np.asarray(whole), atol=1)


def test_a_setting_that_is_none_is_named(tmp_path):
    put(tmp_path / "1.png")
    for name in ("resize", "unreadable"):
        with pytest.raises(ValueError, match=f"{name} must be .* not 'odd'"):
            load(tmp_path, **{name: "odd"})


def test_val_is_the_test_split_where_there_is_no_other(tmp_path):
    put(tmp_path / "train" / "1.png", 1)
    put(tmp_path / "val" / "1.png", 2)
    assert values(load(tmp_path, "test")) == [2]
    assert values(load(tmp_path, "train")) == [1]


def test_a_folder_without_splits_is_split_by_its_paths(tmp_path):
    for i in range(100):
        put(tmp_path / f"{i}.png", i)
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    held_out = values(test)
    assert sorted(held_out + values(train)) == list(range(100))
    assert held_out == [20, 21, 77, 83, 85]  # for ever: by SHA-256 of the path
    for i in range(0, 100, 2):
        (tmp_path / f"{i}.png").unlink()
    assert values(load(tmp_path, "test")) == [
        i for i in held_out if i % 2
    ]  # files that go move no other
    with pytest.raises(UserError, match="has the splits all, train, test, not 'val'"):
        load(tmp_path, "val")


@pytest.mark.parametrize(
    ("folder", "shape", "message"),
    [
        ("", GRAY, "config.data.source.folder is empty"),
        ("nowhere", GRAY, "nowhere is no folder"),
        ("texts", GRAY, r"holds no .png.* files, only 1 .txt"),
        ("one", (8, 8, 4), "1 or 3 channels"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch, folder, shape, message):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "one" / "1.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(UserError, match=message):
        load(folder, shape=shape)


def test_a_loop_of_links_ends(tmp_path):
    put(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert load(tmp_path).names == ["a/1.png", "b/1.png"]


def test_an_image_that_goes_away_is_named(tmp_path):
    source = load(put(tmp_path / "1.png").parent)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match="1.png in .* can no longer be read: No such file"):
        next(pipeline.training_batches(source, 1, seed=0, epochs=1))  # out of grain's threads, too


def test_files_are_decoded_once_and_again_where_one_has_changed(tmp_path, memory, monkeypatch):
    root = tmp_path / "images"
    put(root / "a" / "1.png", 1)
    put(root / "a" / "2.png", 2, size=(4, 4))
    (root / "a" / "0.png").touch()  # so that a row of the pixels is not the number of an example
    decoded, decode = [], images.decode

    def recorded(path, channels):
        if root in path.parents:  # threads of another test may still be reading ahead
            decoded.append(path.name)
        return decode(path, channels)

    monkeypatch.setattr(images, "decode", recorded)
    plain = load(root, unreadable="skip")
    assert sorted(decoded) == ["0.png", "1.png", "2.png"]
    load(root, unreadable="skip")
    assert len(decoded) == 3  # remembered

    cached = load(root, unreadable="skip", cache=True)
    assert len(decoded) == 6
    assert isinstance(cached.pixels, np.memmap)
    for i in range(2):
        np.testing.assert_array_equal(cached[i]["image"], plain[i]["image"])
        np.testing.assert_array_equal(
            cached[i]["image"], load(root, unreadable="skip", cache=True)[i]["image"]
        )
    load(root, unreadable="skip", cache=True)
    assert len(decoded) == 6 + 2  # the two of `plain`
    load(root, unreadable="skip", cache=True, shape=COLOUR)
    assert len(decoded) == 6 + 2 + 3  # another shape
    put(root / "a" / "1.png", 9)
    assert values(load(root, unreadable="skip", cache=True)) == [9, 2]  # another file
    (root / "a" / "0.png").unlink()
    assert values(load(root, cache=True)) == [9, 2]
    assert not list(memory.rglob("*.partial"))


def test_a_damaged_memory_is_made_anew(tmp_path, memory):
    root = put(tmp_path / "images" / "1.png", 5).parent
    for damage in (b"", b"{}", None):
        assert values(load(root, cache=True)) == [5]
        for file in memory.rglob("*.*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:-3] if damage is None else damage)
    assert values(load(root, cache=True)) == [5]
    (store,) = memory.rglob("*.npy")
    np.save(store, np.zeros((1, 4, 4, 1), np.uint8))  # whole, but of another shape
    assert values(load(root, cache=True)) == [5]


def test_what_cannot_be_kept_is_kept_from_nobody(tmp_path, memory, monkeypatch):
    root = put(tmp_path / "images" / "1.png", 5).parent
    memory.write_text("no folder")
    assert values(load(root)) == [5]
    with pytest.raises(
        UserError, match="config.data.source.cache=true, but .* cannot be written: Not a directory"
    ):
        load(root, cache=True)
    memory.unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        load(root, cache=True)
    assert [path.name for path in memory.rglob("*") if path.is_file()] == []


@pytest.mark.skipif(os.name == "nt", reason="names are bytes only on POSIX")
def test_a_name_of_any_bytes(tmp_path):
    name = os.fsdecode(b"\xff/\xfe.png")
    try:
        put(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (tmp_path / os.fsdecode(b"\xfd.png")).touch()
    source = load(tmp_path, unreadable="skip")
    assert source.names == [name]
    for text in (*source.class_names, *source.notes, *source.faults):
        assert text.encode()  # can be printed


def test_a_hash_notices_what_changes_a_file(tmp_path):
    stat = os.stat(put(tmp_path / "a.png"))
    fields = lambda **more: type(
        "Stat", (), {"st_size": 1, "st_mtime_ns": 2, "st_ctime_ns": 3} | more
    )
    assert stat.st_ctime_ns
    hashes = {
        scan.fingerprint(tmp_path, names, stats)
        for names, stats in (
            (["a"], [fields()]),
            (["b"], [fields()]),
            (["a"], [fields(st_size=2)]),
            (["a"], [fields(st_mtime_ns=3)]),
            (["a"], [fields(st_ctime_ns=4)]),
            (["a", "a"], [fields()] * 2),
        )
    }
    assert len(hashes) == 6
    assert scan.fingerprint(tmp_path / "elsewhere", ["a"], [fields()]) not in hashes
