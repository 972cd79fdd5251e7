"""Says what a run would train on: counts, sizes, labels and a picture of its data.

python main.py data --workdir DIR --config experiments/NAME.py
"""

import json
import pathlib
from typing import Any

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import make_folder, write_text
from diffusion_jax.data import report as reports
from diffusion_jax.modalities import pictures
from diffusion_jax.runs.build import check_source, raw_source
from diffusion_jax.runs.checks import check_together
from diffusion_jax.runs.command_line import Given
from diffusion_jax.runs.config import Config
from diffusion_jax.runs.registry import make
from diffusion_jax.runs.settings import check
from diffusion_jax.runs.workdir import check_workdir

PICTURED, COLUMNS = 64, 8  # examples in the picture


def run(given: Given) -> str:
    """What `main.py data` does with its flags; UserError, after the report, where it has
    problems."""
    report, folder = describe(given.config, given.workdir)
    print(reports.summary(report, folder))
    if problems := report["problems"]:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"a run would not train on these data: {problems[0]}{more}")
    return ""


def describe(config: Config, workdir: pathlib.Path) -> tuple[dict[str, Any], pathlib.Path]:
    """Writes workdir/data/report.json and, of the first 64 examples of the training split,
    grid.png, row by row where they are images; returns the report and its folder.

    Files that cannot be read are reported and left out, whatever data.source.unreadable says.
    `problems` in the report is what keeps this config from training.
    """
    check(config)
    check_together(config)
    check_workdir(workdir, config)
    data, modality = config.data, make(config.data.modality, {})
    source, problems = raw_source(config, data.train_split, lenient=True), []
    if len(source) == 0:  # there is nothing to report
        check_source(config, source, data.train_split)
    faults, values = getattr(source, "faults", {}), data.source.values()
    if faults and values.get("unreadable") == "fail":
        problems.append(
            f"{len(faults)} files cannot be read, and config.data.source.unreadable is fail"
        )
    report: dict[str, Any] = {"source": data.source.entry, "shape": list(data.shape)}
    report |= {name: values.get(name, "") for name in ("name", "folder")}
    report |= {"splits": getattr(source, "splits", {}), "entries": reports.entries(source)}
    report["captions"] = reports.captions(source)
    report["range"] = getattr(source, "range", None)
    for name, split in (("train", data.train_split), ("eval", data.eval_split)):
        try:
            loaded = source if name == "train" else raw_source(config, split, lenient=True)
            report[name] = reports.split_report(loaded, split)
            check_source(config, loaded, split)
        except UserError as error:
            problems.append(f"config.data.{name}_split={split}: {error}")
    first = [source[i] for i in range(min(PICTURED, len(source)))]
    report |= reports.measure(source, modality.entry)
    report |= {
        "grid": [reports.label_name(source, example.get("label", 0)) for example in first],
        "unreadable": faults,
        "notes": getattr(source, "notes", []),
        "problems": problems,
    }
    folder = make_folder(workdir / "data")
    picture = preview([example.get(modality.entry) for example in first], source, modality)
    if picture is not None:
        pictures.save(folder / "grid.png", picture)
    write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    return report, folder


def preview(examples: list[Any], source: Any, modality: Any) -> np.ndarray | None:
    """One picture of examples: images row by row, others as their modality shows samples."""
    if any(example is None for example in examples):
        return None
    if len({example.shape for example in examples}) > 1:
        return None
    stacked, low_high = np.stack(examples), getattr(source, "range", None)
    if modality.entry == "image" and stacked.ndim == 4:
        seen = pictures.shown(stacked, low_high)
        return pictures.enlarge(pictures.tile_by_rows(seen, COLUMNS))
    return modality.preview(stacked, 0, low_high)
