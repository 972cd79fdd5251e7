"""The page on which people rate two sets of images, and the tally of their ratings."""

import base64
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import side_by_side

NAMES = ("runs/cosine", "runs/linear")


def images(seed, count=30, shape=(4, 6, 3)):
    return Arrays(
        np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8), None
    )


FIRST, SECOND = images(0), images(1, 40)


def write(folder, **options):
    """(the data of the page, the key) of a page of both sets."""
    path = side_by_side.write_page(folder, FIRST, SECOND, NAMES, **options)
    (data,) = re.findall(r"^const data = (.*);$", path.read_text(), re.MULTILINE)
    return json.loads(data), json.loads((folder / "key.json").read_text())


def decoded(uri):
    with Image.open(
        io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))
    ) as file:
        return np.asarray(file)


def rate(folder, answers, name="ratings.json", **values):
    """A file of ratings as the page saves it."""
    page = json.loads((folder / "key.json").read_text())["page"]
    path = folder / name
    path.write_text(
        json.dumps(
            {"page": page, "token": name, "rater": "", "saved": 1.0, "answers": answers} | values
        )
    )
    return path


def prefer(key, favoured):
    """The answers of one who prefers set 0 or 1, or neither, in turn of the pairs."""
    return [
        "tie" if s is None else ("left" if s == left else "right")
        for s, left in zip(favoured, key["left"], strict=True)
    ]


@pytest.mark.parametrize("matched", [False, True])
def test_the_page_shows_images_of_both_sets_on_the_sides_that_the_key_says(tmp_path, matched):
    data, key = write(tmp_path / "page", pairs=20, seed=3, matched=matched)
    assert len(data["pairs"]) == len(key["left"]) == 20
    for pair, left, number in zip(
        data["pairs"], key["left"], np.transpose(key["numbers"]), strict=True
    ):
        of_set = [FIRST.images[number[0]], SECOND.images[number[1]]]
        np.testing.assert_array_equal(decoded(pair[0]), of_set[left])
        np.testing.assert_array_equal(decoded(pair[1]), of_set[1 - left])
    assert [len(set(numbers)) for numbers in key["numbers"]] == [20, 20]
    assert (key["numbers"][0] == key["numbers"][1]) == matched
    assert (key["names"], key["page"]) == (list(NAMES), data["page"])


def test_the_page_is_blind(tmp_path):
    """Nothing but the question, the size, an id and the images; an id that the names don't
    enter."""
    page = side_by_side.write_page(
        tmp_path / "a", FIRST, SECOND, NAMES, pairs=10, question="Which </script> is it?"
    )
    text = page.read_text()
    text.encode("ascii")
    for word in (
        "cosine",
        "linear",
        "runs",
        "key",
        "first",
        "second",
        str(tmp_path),
        "seed",
        "tEXt",
        "eXIf",
    ):
        assert word not in text.replace("keydown", "").replace("event.key", ""), word
    assert text.count("</script>") == 1
    assert not re.search(r"https?:|//|@import|src=|href=\"", re.sub(r"base64,[^\"]*", "", text))
    data, key = write(tmp_path / "b", pairs=10)
    assert set(data) == {"page", "question", "size", "pairs"}
    renamed = side_by_side.write_page(tmp_path / "c", FIRST, SECOND, ("x", "y"), pairs=10)
    assert renamed.read_bytes() == (tmp_path / "b" / "index.html").read_bytes()
    kinds = [
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        for pair in data["pairs"]
        for uri in pair
    ]
    assert {(kind.format, kind.mode, kind.size, *kind.info) for kind in kinds} == {
        ("PNG", "RGB", (6, 4))
    }
    assert sum(key["left"]) == 5


@pytest.mark.parametrize(("pairs", "ways"), [(1, 2), (2, 2), (5, 20)])
def test_the_place_of_a_pair_does_not_tell_the_side(tmp_path, pairs, ways):
    """Over 200 seeds every pair has each set on the left in about half of the pages, half of a
    page's pairs have, and every such way to arrange them occurs."""
    left = np.array(
        [write(tmp_path / str(seed), pairs=pairs, seed=seed)[1]["left"] for seed in range(200)]
    )
    assert (np.abs(left.mean(axis=0) - 0.5) < 4 * 0.5 / np.sqrt(200)).all()
    assert set(left.sum(axis=1)) == {pairs // 2, -(-pairs // 2)}
    assert len(np.unique(left, axis=0)) == ways


def test_the_seed_decides(tmp_path):
    (one, _), (again, _), (other, _) = (
        write(tmp_path / name, seed=seed, pairs=9) for name, seed in [("a", 1), ("b", 1), ("c", 2)]
    )
    assert one == again
    assert one["pairs"] != other["pairs"]
    assert one["page"] != other["page"]


def test_a_tally_by_hand(tmp_path):
    """10 pairs, two raters: a has 5 + 7 wins, b 3 + 1, and there are 2 + 0 ties; the second left 2
    pairs out."""
    _, key = write(tmp_path, pairs=10)
    one = rate(
        tmp_path, prefer(key, [0, 0, 0, 0, 0, 1, 1, 1, None, None]), "one.json", rater=" Ann  Lee "
    )
    both = prefer(key, [0, 0, 0, 1, 0, 0, 0, 0, None, None])[:8]
    two = rate(tmp_path, both, "two.json", token="abcdefghij")
    result = side_by_side.tally(tmp_path, [one, two])
    assert result["wins"] == {"runs/cosine": 12, "runs/linear": 4}
    assert result["ties"] == 2
    assert result["raters"] == {
        "Ann Lee": {"wins": {"runs/cosine": 5, "runs/linear": 3}, "ties": 2, "unrated": 0},
        "unnamed abcdef": {"wins": {"runs/cosine": 7, "runs/linear": 1}, "ties": 0, "unrated": 2},
    }
    answers = json.loads(one.read_text())["answers"] + both
    assert (result["left"], result["right"]) == (answers.count("left"), answers.count("right"))
    assert result["win_rate"] == 0.75
    # 2 (1 + 16 + 120 + 560 + 1820) / 65536; and the roots of (p - 3/4)^2 = 1.96^2 p (1 - p) / 16
    assert result["p_value"] == 2 * 2517 / 65536
    np.testing.assert_allclose(result["interval"], (0.50502, 0.89818), atol=1e-5)
    assert result["notes"] == []
    json.dumps(result)


@pytest.mark.parametrize(
    ("wins", "count"),
    [(0, 1), (1, 1), (3, 7), (0, 40), (40, 40), (50, 100), (61, 100), (700, 1500)],
)
def test_the_statistics_are_scipys(wins, count):
    expected = scipy.stats.binomtest(wins, count)
    np.testing.assert_allclose(side_by_side.sign_test(wins, count), expected.pvalue, rtol=1e-9)
    interval = expected.proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(
        side_by_side.wilson(wins, count), (interval.low, interval.high), rtol=1e-12, atol=1e-15
    )


def test_only_ties(tmp_path):
    write(tmp_path, pairs=3)
    result = side_by_side.tally(tmp_path, [rate(tmp_path, ["tie", "tie"])])
    assert (result["win_rate"], result["interval"], result["p_value"], result["ties"]) == (
        None,
        None,
        1.0,
        2,
    )


def test_of_one_rater_the_newest_file_counts(tmp_path):
    _, key = write(tmp_path, pairs=2)
    mine = lambda name, favoured, **values: rate(tmp_path, prefer(key, favoured), name, **values)
    old = mine("old.json", [1, 1], rater="ann", saved=5)
    new = mine("new.json", [0, 0], rater="Ann ", saved=7.5)
    nameless = mine(
        "nameless.json", [1, 1], token="new.json", saved=6
    )  # Ann's browser, before she gave her name
    other = mine("other.json", [1, 0], token="t", saved=1)
    for order in ([old, new, nameless, other], [other, nameless, new, old]):
        result = side_by_side.tally(tmp_path, order)
        assert result["wins"] == {"runs/cosine": 3, "runs/linear": 1}
        assert set(result["raters"]) == {"Ann", "unnamed t"}
        assert result["notes"] == [
            f"{path} is left out: {new} is of the same rater, Ann, and newer"
            for path in (nameless, old)
        ]


NODE = shutil.which("node")
# A document that knows no more than the page asks of it; then a person presses keys, and saves.
BROWSER = """
const elements = {}, listeners = {}, kept = {};
const make = () => ({style: {}, blur() {}, click() { if (this.download) console.log(this.href); }});
globalThis.document = {getElementById: name => elements[name] ??= make(), createElement: make,
  addEventListener: (kind, act) => listeners[kind] = act};
globalThis.localStorage = {getItem: name => kept[name] ?? null,
  setItem: (name, value) => kept[name] = value};
globalThis.addEventListener = () => {};
globalThis.innerWidth = 1000; globalThis.innerHeight = 800;
globalThis.Blob = class { constructor(parts) { this.text = parts[0]; } };
globalThis.URL = {createObjectURL: blob => blob.text, revokeObjectURL() {}};
globalThis.setTimeout = () => {};
const [script, presses] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const open = new Function(script);
open();
for (const press of presses) {
  if (press === "reopen") open();
  else listeners.keydown({key: press, target: null, preventDefault() {}});
}
elements.rater.value = " Ann "; elements.rater.oninput();
elements.save.onclick();
"""


@pytest.mark.skipif(not NODE, reason="needs node")
def test_a_rater_at_the_page(tmp_path):
    """Who always prefers the second set, undoes a mistake, and closes the page in between."""
    _, key = write(tmp_path, pairs=6, question="Which?")
    (script,) = re.findall(
        r"<script>(.*)</script>", (tmp_path / "index.html").read_text(), re.DOTALL
    )
    better = ["ArrowLeft" if left == 1 else "ArrowRight" for left in key["left"]]
    worse = "ArrowRight" if better[1] == "ArrowLeft" else "ArrowLeft"
    presses = [
        better[0],
        worse,
        "ArrowUp",
        *better[1:3],
        "reopen",
        *better[3:5],
        "x",
        "ArrowDown",
        "ArrowLeft",
    ]
    done = subprocess.run(
        [NODE, "-e", BROWSER],
        input=json.dumps([script, presses]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "ratings.json").write_text(done.stdout)
    result = side_by_side.tally(tmp_path, [tmp_path / "ratings.json"])
    assert result["wins"] == {"runs/cosine": 0, "runs/linear": 5}
    assert (result["ties"], result["p_value"]) == (1, 2 / 32)
    assert list(result["raters"]) == ["Ann"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "No such file"),
        ("", "is no file of ratings"),
        ("[" * 100_000, "is no file of ratings"),
        ("\udcff", "is no file of ratings"),
        ("[]", "it holds no named values"),
        ("{}", "page, token, rater, saved, answers missing"),
        ({"saved": None}, "saved missing or of the wrong kind"),
        ({"page": "another"}, "rates the page another, not"),
        ({"answers": ["left"] * 4}, "at most 3 answers"),
        ({"answers": ["up"]}, "is damaged"),
        ({"answers": [["left"]]}, "is damaged"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, complaint):
    write(tmp_path, pairs=3)
    path = tmp_path / "bad.json"
    if isinstance(content, dict):
        rate(tmp_path, content.pop("answers", []), "bad.json", **content)
    elif content is not None:
        path.write_text(content, errors="surrogateescape")
    with pytest.raises(UserError, match=complaint) as caught:
        side_by_side.tally(tmp_path, [path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [None, "{", "{}", '{"page": "a", "names": ["b"], "left": [0]}', '{"page": "a", "left": [2]}'],
)
def test_a_damaged_key_is_named(tmp_path, content):
    write(tmp_path, pairs=3)
    ratings = rate(tmp_path, [])
    (tmp_path / "key.json").unlink()
    if content:
        (tmp_path / "key.json").write_text(content)
    with pytest.raises(UserError, match=r"key.json is no key of a page"):
        side_by_side.tally(tmp_path, [ratings])


def test_no_ratings(tmp_path):
    write(tmp_path, pairs=3)
    with pytest.raises(UserError, match=r"at least one ratings.json"):
        side_by_side.tally(tmp_path, [])


def test_what_makes_no_page_is_refused(tmp_path):
    page = lambda second=SECOND, names=NAMES, pairs=5: side_by_side.write_page(
        tmp_path, FIRST, second, names, pairs
    )
    for pairs in (0, 31):
        with pytest.raises(
            UserError,
            match=f"{pairs} pairs need as many images of each set, and one, not 30 and 40",
        ):
            page(pairs=pairs)
    with pytest.raises(UserError, match="two different names"):
        page(names=("a", "a"))
    with pytest.raises(
        UserError,
        match=r"tell the sets apart: \[4, 6, 3\] in runs/cosine, \[8, 8, 3\] in runs/linear",
    ):
        page(images(2, shape=(8, 8, 3)))
    with pytest.raises(UserError, match="runs/linear must be uint8 images"):
        page([{"image": np.zeros((4, 6, 3))}] * 9)
    assert not list(tmp_path.iterdir())
    page()
    before = (tmp_path / "key.json").read_bytes()
    with pytest.raises(UserError, match="holds a page already"):
        page()
    assert (tmp_path / "key.json").read_bytes() == before
