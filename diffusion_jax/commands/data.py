"""Says what a run would train on: counts, sizes, labels and a picture of its data.

python main.py data --workdir DIR --config experiments/NAME.py
"""

import collections
import json
import pathlib

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.modalities import pictures
from diffusion_jax.runs.build import check_source, check_together, load_source
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.settings import check
from diffusion_jax.runs.workdir import check_workdir

MEASURED = 10_000  # examples, evenly spread, whose pixels are measured
PICTURED, COLUMNS = 64, 8  # examples in the picture
LISTED = 12  # labels in the summary


def run(given: Given) -> str:
    """What `main.py data` does with its flags; UserError, after the report, where it has problems."""
    report, folder = describe(given.config, given.workdir)
    print(summary(report, folder))
    if problems := report["problems"]:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"a run would not train on these data: {problems[0]}{more}")
    return ""


def describe(config: Config, workdir: pathlib.Path) -> tuple[dict, pathlib.Path]:
    """Writes workdir/data/grid.png, the first 64 examples of the training split row by row, and
    report.json; returns the report and its folder.

    Files that cannot be read are reported and left out, whatever data.source.unreadable says.
    `problems` in the report is what keeps this config from training.
    """
    check(config)
    check_together(config)
    check_workdir(workdir, config)
    data = config.data
    # without it there is nothing to report
    source, problems = load_source(config, data.train_split, lenient=True), []
    if len(source) == 0:
        check_source(config, source, data.train_split)  # says so
    faults, values = getattr(source, "faults", {}), data.source.values()
    if faults and values.get("unreadable") == "fail":
        problems.append(f"{len(faults)} files cannot be read, and data.source.unreadable is fail")
    report: dict = {"source": data.source.entry, "shape": list(data.shape)}
    report |= {name: values.get(name, "") for name in ("name", "folder")}
    report |= {"splits": getattr(source, "splits", {})}
    for name, split in (("train", data.train_split), ("eval", data.eval_split)):
        try:
            loaded = source if name == "train" else load_source(config, split, lenient=True)
            report[name] = split_report(loaded, split)
            check_source(config, loaded, split)
        except UserError as error:
            problems.append(f"data.{name}_split={split}: {error}")
    pixels, first = measure(source), [source[i] for i in range(min(PICTURED, len(source)))]
    report |= {
        **pixels,
        "grid": [label_name(source, example.get("label", 0)) for example in first],
        "unreadable": faults,
        "notes": getattr(source, "notes", []),
        "problems": problems,
    }
    folder = make_folder(workdir / "data")
    if pixels and len({example["image"].shape for example in first}) == 1:
        pictures.save(folder / "grid.png", grid(np.stack([example["image"] for example in first])))
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    return report, folder


def label_name(source, label) -> str:
    names = getattr(source, "class_names", [])
    return names[int(label)] if names else str(int(label))


def spread(source) -> np.ndarray:
    return np.unique(
        np.linspace(0, len(source) - 1, min(MEASURED, len(source))).round().astype(int)
    )


def split_report(source, split: str) -> dict:
    """The examples of a split and their labels; where only some were read for that, `labels_of`
    says how many."""
    labels = getattr(source, "labels", None)
    if labels is None:
        labels = np.array([source[int(i)].get("label", 0) for i in spread(source)], np.int64)
    counts = np.bincount(labels, minlength=source.num_classes) if source.num_classes else []
    named = {label_name(source, i): int(count) for i, count in enumerate(counts)}
    return {"split": split, "examples": len(source), "labels": named, "labels_of": len(labels)}


def measure(source) -> dict:
    """Sizes, and the mean and standard deviation of the pixels by channel, in 0 ... 255 and in [-1,
    1]; {} without images."""
    total, squares, count, sizes = 0.0, 0.0, 0, collections.Counter()
    index = spread(source)
    for i in index:
        image = source[int(i)].get("image")
        if image is None or image.dtype != np.uint8:
            return {}
        sizes[image.shape[:2]] += 1
        image = image.reshape(-1, image.shape[-1]).astype(np.float64)
        total, squares, count = (
            total + image.sum(0),
            squares + (image**2).sum(0),
            count + len(image),
        )
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    if len(getattr(source, "sizes", ())):
        sizes = collections.Counter(map(tuple, source.sizes.tolist()))
    areas = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return {
        "sizes": {
            "least": areas[0],
            "most": areas[-1],
            "most_common": [list(pair) for pair in sizes.most_common(5)],
        },
        "measured": len(index),
        "mean": {
            "0..255": np.asarray(mean).tolist(),
            "-1..1": (np.asarray(mean) / 127.5 - 1.0).tolist(),
        },
        "deviation": {
            "0..255": np.asarray(deviation).tolist(),
            "-1..1": (np.asarray(deviation) / 127.5).tolist(),
        },
    }


def grid(images: np.ndarray) -> np.ndarray:
    """The examples row by row; `tile` goes column by column."""
    rows = -(-len(images) // COLUMNS)
    blank = np.full((rows * COLUMNS - len(images), *images.shape[1:]), 32, np.uint8)
    order = np.arange(rows * COLUMNS).reshape(rows, COLUMNS).T.reshape(-1)
    return pictures.enlarge(pictures.tile(np.concatenate([images, blank])[order], rows))


def summary(report: dict, folder: pathlib.Path) -> str:
    """The report in a few lines."""
    lines = []
    for name in ("train", "eval"):
        if name not in report:
            continue
        labels = report[name]["labels"]
        listed = ", ".join(f"{label} {count}" for label, count in list(labels.items())[:LISTED])
        more = ", ..." if len(labels) > LISTED else ""
        lines.append(
            f"{report[name]['split']}: {report[name]['examples']:,} examples, {len(labels)} labels"
        )
        lines[-1] += f" ({listed}{more})" if labels else ""
    splits = [f"{split} {count:,}" for split, count in report["splits"].items()]
    lines += [f"splits: {', '.join(splits)}"] if splits else []
    if "sizes" in report:
        size = lambda pair: f"{pair[0]} x {pair[1]}"
        sizes, numbers = (
            report["sizes"],
            lambda values: ", ".join(f"{value:.3f}" for value in values),
        )
        common, count = sizes["most_common"][0]
        others = (
            f"; {size(sizes['least'])} to {size(sizes['most'])}"
            if len(sizes["most_common"]) > 1
            else ""
        )
        lines.append(f"sizes: {size(common)} ({count:,}){others}")
        lines.append(
            f"in [-1, 1]: mean {numbers(report['mean']['-1..1'])}, deviation {numbers(report['deviation']['-1..1'])}"
        )
    lines += [f"note: {note}" for note in report["notes"]] + [
        f"problem: {problem}" for problem in report["problems"]
    ]
    return "\n".join([*lines, f"data: {folder}"])
