"""The command `rate`: people judge two sets of images blind, side by side, and their ratings are
counted."""

import json

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import write_text
from diffusion_jax.evaluation import references, side_by_side
from diffusion_jax.runs.command_line import Given

PAIRS = 50  # at most


def command(given: Given) -> str:
    """Writes workdir/rating/index.html of --images and --against or, with --ratings,
    workdir/rating/tally.json."""
    folder = given.workdir / "rating"
    if given.ratings:
        found = side_by_side.tally(folder, given.ratings.split(","))
        write_text(folder / "tally.json", json.dumps(found, indent=2) + "\n")
        return json.dumps(found, indent=2)
    if not (given.images and given.against):
        raise UserError(
            "--images and --against name the two sets to be judged, --ratings the files of ratings to be counted"
        )
    first, second = (
        references.image_set(name, given.config.data).source
        for name in (given.images, given.against)
    )
    pairs = min(PAIRS, len(first), len(second))
    page = side_by_side.write_page(folder, first, second, (given.images, given.against), pairs)
    return f"page: {page}"
