"""Lets people judge two sets of images blind, side by side, and counts their ratings.

python main.py rate --workdir DIR --images SET --against SET
python main.py rate --workdir DIR --ratings FILE[,FILE ...]
"""

import json

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import write_text
from diffusion_jax.evaluation import references, side_by_side
from diffusion_jax.runs.command_line import Flag, Given, Needs
from diffusion_jax.runs.score import run_data

FLAGS = {
    "images": Flag("", "images to be judged: a folder, an .npz, an .npy or a split"),
    "against": Flag("", "images to judge them by"),
    "ratings": Flag("", "files of ratings, with commas between them"),
}
NEEDS = Needs(alone=("images", "ratings"))
PAIRS = 50  # at most


def run(given: Given) -> str:
    """Writes workdir/rating/index.html of --images and --against or, with --ratings,
    workdir/rating/tally.json."""
    folder = given.workdir / "rating"
    if given.flags["ratings"]:
        found = side_by_side.tally(folder, given.flags["ratings"].split(","))
        write_text(folder / "tally.json", json.dumps(found, indent=2) + "\n")
        return json.dumps(found, indent=2)
    if not (given.flags["images"] and given.flags["against"]):
        raise UserError(
            "--images and --against name the two sets to be judged, --ratings the files of "
            "ratings to be counted"
        )
    first, second = (
        references.image_set(name, run_data(given.config, given.declared)).source
        for name in (given.flags["images"], given.flags["against"])
    )
    pairs = min(PAIRS, len(first), len(second))
    page = side_by_side.write_page(
        folder, first, second, (given.flags["images"], given.flags["against"]), pairs
    )
    return f"page: {page}"
