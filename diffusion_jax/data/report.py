"""What a source holds, in numbers: examples, labels, sizes, means."""

import collections
import pathlib
from collections.abc import Mapping

import numpy as np

from diffusion_jax.data import texts
from diffusion_jax.data.spec import spec_of

MEASURED = 10_000  # examples, evenly spread, whose values are measured
LISTED = 12  # labels in the summary
QUOTED = 5  # captions


def label_name(source, label) -> str:
    names = getattr(source, "class_names", [])
    return names[int(label)] if names else str(int(label))


def spread(source) -> np.ndarray:
    """Numbers of MEASURED examples, evenly spread."""
    last, count = len(source) - 1, min(MEASURED, len(source))
    return np.unique(np.linspace(0, last, count).round().astype(int))


def split_report(source, split: str) -> dict:
    """The examples of a split and their labels; where only some were read for that, `labels_of`
    says how many."""
    labels = getattr(source, "labels", None)
    if labels is None and source.num_classes:
        labels = [source[int(i)].get("label", 0) for i in spread(source)]
    labels = np.asarray([] if labels is None else labels, np.int64)
    counts = np.bincount(labels, minlength=source.num_classes) if source.num_classes else []
    named = {label_name(source, i): int(count) for i, count in enumerate(counts)}
    return {"split": split, "examples": len(source), "labels": named, "labels_of": len(labels)}


def entries(source) -> dict[str, list]:
    """Name -> [shape, type] of what an example has."""
    return {name: [list(shape), str(dtype)] for name, (shape, dtype) in spec_of(source).items()}


def captions(source) -> list[str]:
    """The captions of QUOTED examples, evenly spread; none where there are none."""
    shape, dtype = spec_of(source).get("text", ((), None))
    if dtype != np.uint8 or len(shape) != 1:
        return []
    chosen = np.linspace(0, len(source) - 1, min(QUOTED, len(source))).round().astype(int)
    try:
        return [texts.decode(source[int(i)]["text"]) for i in chosen]
    except UnicodeDecodeError:
        return []  # other bytes of this name


def measure(source, entry: str = "image") -> dict:
    """Sizes, and the mean and standard deviation of the values by channel, the last axis; {} where
    examples have no such entry.

    They are given in the data's own values, 0..255 or `values`, and in -1..1, where there is a
    range.
    """
    index, sizes = spread(source), collections.Counter()
    total, squares, count = 0.0, 0.0, 0
    for i in index:
        value = source[int(i)].get(entry)
        if value is None or value.ndim < 1:
            return {}
        sizes[value.shape[:2] if value.ndim == 3 else value.shape] += 1
        flat = value.reshape(-1, value.shape[-1]).astype(np.float64)
        total, squares = total + flat.sum(0), squares + (flat**2).sum(0)
        count += len(flat)
    mean = np.asarray(total / count)
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    if len(getattr(source, "sizes", ())):
        sizes = collections.Counter(map(tuple, source.sizes.tolist()))
    areas = sorted(sizes, key=lambda size: (np.prod(size), size))
    found = {
        "sizes": {
            "least": areas[0],
            "most": areas[-1],
            "most_common": [list(pair) for pair in sizes.most_common(5)],
        },
        "measured": len(index),
    }
    own, scale = in_range(source, spec_of(source)[entry][1])
    found["mean"], found["deviation"] = {own: mean.tolist()}, {own: deviation.tolist()}
    if scale is not None:
        low, half = scale
        found["mean"]["-1..1"] = ((mean - low) / half - 1.0).tolist()
        found["deviation"]["-1..1"] = (deviation / half).tolist()
    return found


def in_range(source, dtype: np.dtype) -> tuple[str, tuple[float, float] | None]:
    """(what the values are called, (least value, half of the range), if there is one)."""
    if dtype == np.uint8:
        return "0..255", (0.0, 127.5)
    low_high = getattr(source, "range", None)
    if low_high is None:
        return "values", None
    low, high = low_high
    return "values", (low, 0.5 * (high - low))


def summary(report: Mapping, folder: pathlib.Path) -> str:
    """The report in a few lines."""
    lines = [split_line(report[name]) for name in ("train", "eval") if name in report]
    splits = [f"{split} {count:,}" for split, count in report["splits"].items()]
    lines += [f"splits: {', '.join(splits)}"] if splits else []
    if "sizes" in report:
        lines += [size_line(report["sizes"]), *value_lines(report)]
    if report.get("captions"):
        quoted = [f'"{text}"' for text in report["captions"]]
        lines.append(f"captions: {', '.join(quoted)}")
    lines += [f"note: {note}" for note in report["notes"]]
    lines += [f"problem: {problem}" for problem in report["problems"]]
    return "\n".join([*lines, f"data: {folder}"])


def split_line(split: Mapping) -> str:
    labels = split["labels"]
    listed = ", ".join(f"{label} {count}" for label, count in list(labels.items())[:LISTED])
    more = ", ..." if len(labels) > LISTED else ""
    line = f"{split['split']}: {split['examples']:,} examples, {len(labels)} labels"
    return line + (f" ({listed}{more})" if labels else "")


def size_line(sizes: Mapping) -> str:
    shown = lambda size: " x ".join(map(str, size))
    common, count = sizes["most_common"][0]
    several = len(sizes["most_common"]) > 1
    others = f"; {shown(sizes['least'])} to {shown(sizes['most'])}" if several else ""
    return f"sizes: {shown(common)} ({count:,}){others}"


def value_lines(report: Mapping) -> list[str]:
    """Mean and deviation as the diffusion sees them; of floats, in their own units as well."""
    lines = []
    for kind in ("values", "-1..1"):
        if kind in report["mean"]:
            mean, deviation = (
                ", ".join(f"{value:.3f}" for value in report[name][kind])
                for name in ("mean", "deviation")
            )
            where = "in [-1, 1]" if kind == "-1..1" else "values"
            lines.append(f"{where}: mean {mean}, deviation {deviation}")
    if report.get("range"):
        low, high = report["range"]
        lines.append(f"range: {low:g} to {high:g}")
    return lines
