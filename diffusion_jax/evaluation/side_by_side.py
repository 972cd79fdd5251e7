"""People rate the images of two runs blind: a page to rate them with, and the tally of what it
saved."""

import base64
import hashlib
import json
import math
import pathlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.evaluation.side_by_side_page import PAGE
from diffusion_jax.modalities import pictures

SIDES = ("left", "right")
ANSWERS = (*SIDES, "tie")
Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


def write_page(
    folder: str | pathlib.Path,
    first: Any,
    second: Any,
    names: tuple[str, str],
    pairs: int = 50,
    seed: int = 0,
    question: str = "Which image looks better?",
    matched: bool = False,
) -> pathlib.Path:
    """Writes folder/index.html, on which people rate two sets of images, and folder/key.json;
    returns the page's path.

    first, second: have a length, and examples {"image": uint8 [H, W, C]}. `pairs` images of each
    are drawn without replacement, matched: of the same numbers in both. Each set is on the left in
    half of the pairs, drawn at random. The page is one file that needs no network and says nothing
    of which image is whose; the key does: keep it from the raters. Raises UserError for more pairs
    than images, images of different sizes, and a folder with a key, whose ratings would be lost.
    """
    folder = pathlib.Path(folder)
    if len(set(names)) != 2 or not all(names):
        raise UserError(f"the sets need two different names, not {names[0]!r} and {names[1]!r}")
    if not 1 <= pairs <= min(len(first), len(second)):
        raise UserError(
            f"{pairs} pairs need as many images of each set, and one, not {len(first)} and "
            f"{len(second)}"
        )
    if (folder / "key.json").exists():
        raise UserError(
            f"{folder} holds a page already, whose ratings need its key; choose another folder"
        )
    rng = np.random.default_rng(seed)
    if matched:
        numbers = np.tile(rng.choice(min(len(first), len(second)), pairs, replace=False), (2, 1))
    else:
        numbers = np.stack(
            [rng.choice(len(images), pairs, replace=False) for images in (first, second)]
        )
    on_left = rng.permutation(np.arange(pairs) % 2) ^ rng.integers(2)  # the set, 0 or 1
    chosen = [
        [images[int(i)]["image"] for i in of_set]
        for images, of_set in zip((first, second), numbers, strict=True)
    ]
    size = check_images(names, chosen)
    uris = [[data_uri(image) for image in images] for images in chosen]
    data = {
        "question": question,
        "size": size,
        "pairs": [[uris[s][p], uris[1 - s][p]] for p, s in enumerate(on_left)],
    }
    data["page"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    key = {
        "page": data["page"],
        "names": list(names),
        "left": on_left.tolist(),
        "numbers": numbers.tolist(),
    }
    key |= {"question": question, "seed": seed}
    make_folder(folder)
    write_text(folder / "key.json", json.dumps(key, indent=1))
    write_text(
        folder / "index.html",
        PAGE.replace("DATA;", json.dumps(data).replace("<", "\\u003c") + ";", 1),
    )
    return folder / "index.html"


def check_images(names: tuple[str, str], chosen: list[list[np.ndarray]]) -> list[int]:
    """The height and width of all images of both sets; UserError where they are not uint8 [H, W, C]
    of one shape."""
    shape = chosen[0][0].shape
    for name, images in zip(names, chosen, strict=True):
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3:
                raise UserError(
                    f"{name} must be uint8 images [H, W, C], not {image.dtype} {list(image.shape)}"
                )
            if image.shape != shape:
                raise UserError(
                    f"images of different shapes would tell the sets apart: {list(shape)} in "
                    f"{names[0]}, "
                    f"{list(image.shape)} in {name}"
                )
    return list(shape[:2])


def data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(pictures.png(image)).decode()


def tally(folder: str | pathlib.Path, files: Iterable[str | pathlib.Path]) -> dict:
    """What the raters, each with a ratings.json of the page in `folder`, prefer.

    names: of the two sets, a and b. wins: name -> ratings in its favour. ties. left and right:
    ratings for that side, whosever it was. win_rate: of a among the ratings that are no ties, None
    without any. interval: its 95 % interval (Wilson 1927). p_value: of the exact two-sided sign
    test against 1/2. raters: name -> wins, ties and unrated pairs of each; notes: what was left
    out. Of several files of one rater, by name or by browser, the one saved last counts. Ratings
    are taken as independent, so those of few pairs by many raters make the interval too narrow.
    Raises UserError for a damaged file and one of another page."""
    key = read_key(pathlib.Path(folder) / "key.json")
    read = [(pathlib.Path(file), read_ratings(pathlib.Path(file), key)) for file in files]
    if not read:
        raise UserError("there are no ratings to count; give at least one ratings.json")
    kept, notes = newest(read)
    raters = {}
    total, sides = Counter(), Counter()
    for rater, answers in kept.items():
        votes = Counter(
            vote(answer, left) for answer, left in zip(answers, key["left"], strict=False)
        )
        total += votes
        sides += Counter(answers)
        raters[rater] = {**by_name(votes, key["names"]), "unrated": len(key["left"]) - len(answers)}
    wins, decided = total[0], total[0] + total[1]
    result = {"page": key["page"], "names": key["names"], **by_name(total, key["names"])}
    result |= {"left": sides["left"], "right": sides["right"]}
    result |= {
        "win_rate": wins / decided if decided else None,
        "interval": wilson(wins, decided) if decided else None,
    }
    return result | {"p_value": sign_test(wins, decided), "raters": raters, "notes": notes}


def vote(answer: str, left: int) -> int | str:
    """The set, 0 or 1, that an answer is for, or "tie", where the set `left` was on the left."""
    return answer if answer == "tie" else left ^ SIDES.index(answer)


def by_name(votes: Counter, names: list[str]) -> dict:
    return {"wins": {name: votes[i] for i, name in enumerate(names)}, "ties": votes["tie"]}


def newest(read: list[tuple[pathlib.Path, dict]]) -> tuple[dict[str, list[str]], list[str]]:
    """(rater -> answers of the file saved last, notes on the others); one rater is one name or one
    browser's token."""
    kept, notes = {}, []
    seen: dict[str, tuple[str, pathlib.Path]] = {}  # a token or a name -> its rater and file
    for path, ratings in sorted(read, key=lambda pair: pair[1]["saved"], reverse=True):
        name = " ".join(ratings["rater"].split())
        marks = ["token " + ratings["token"]] + (["name " + name.casefold()] if name else [])
        known = next((seen[mark] for mark in marks if mark in seen), None)
        if known:
            notes.append(
                f"{path} is left out: {known[1]} is of the same rater, {known[0]}, and newer"
            )
        else:
            rater = name or f"unnamed {ratings['token'][:6]}"
            known = (rater if rater not in kept else f"{rater} {ratings['token']}"), path
            kept[known[0]] = ratings["answers"]
        seen |= {mark: known for mark in marks if mark not in seen}
    return kept, notes


def read_json(path: pathlib.Path, kind: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is no {kind}: {cause}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is no {kind}: it holds no named values")
    return value


def read_key(path: pathlib.Path) -> dict:
    """What `write_page` wrote as key.json; else UserError."""
    key = read_json(path, "key of a page")
    names, left = key.get("names"), key.get("left")
    whole = (
        isinstance(key.get("page"), str)
        and isinstance(left, list)
        and all(side in (0, 1) for side in left)
    )
    if (
        not whole
        or not isinstance(names, list)
        or len(names) != 2
        or not all(isinstance(name, str) for name in names)
    ):
        raise UserError(f"{path} is no key of a page: it must hold page, names and left")
    return key


def read_ratings(path: pathlib.Path, key: dict) -> dict:
    """What the page saved; UserError where it is damaged or another page's."""
    ratings = read_json(path, "file of ratings")
    kinds = {"page": str, "token": str, "rater": str, "saved": (int, float), "answers": list}
    if wrong := [name for name, kind in kinds.items() if not isinstance(ratings.get(name), kind)]:
        raise UserError(
            f"{path} is no file of ratings: {', '.join(wrong)} missing or of the wrong kind"
        )
    if ratings["page"] != key["page"]:
        raise UserError(
            f"{path} rates the page {ratings['page']}, not {key['page']}, whose key this is"
        )
    answers, pairs = ratings["answers"], len(key["left"])
    if len(answers) > pairs or any(answer not in ANSWERS for answer in answers):
        raise UserError(
            f"{path} is damaged: it must hold at most {pairs} answers, each {', '.join(ANSWERS)}"
        )
    return ratings


def wilson(wins: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share, within [0, 1] (Wilson 1927); count above 0."""
    share, z2 = wins / count, Z**2 / count
    middle = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / count + z2 / (4 * count))
    low, high = middle - half, middle + half
    return (0.0 if wins == 0 else low), (1.0 if wins == count else high)


def sign_test(wins: int, count: int) -> float:
    """The probability, under even odds, of `count` decisions at least as one-sided as `wins` of
    them; exact."""
    tail = sum(math.comb(count, i) for i in range(min(wins, count - wins) + 1))
    return min(1.0, 2 * tail / 2**count)
