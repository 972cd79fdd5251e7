"""The command `figures`."""

import json

import pytest
from tiny import experiment_file, main_run, mlp_config

from diffusion_jax.commands import figures
from diffusion_jax.runs.workdir import open_workdir

ALONE = {"beta_ratio.png", "alphas_cumprod.png", "forward.png"}


def test_figures_of_a_config_alone(tmp_path):
    main_run(
        "figures",
        "--workdir",
        tmp_path / "new",
        "--config",
        experiment_file(tmp_path, "mlp_config"),
    )
    assert {path.name for path in (tmp_path / "new" / "figures").iterdir()} == ALONE
    open_workdir(tmp_path / "new", mlp_config())  # training enters the folder that they made


def test_figures_of_a_run(improved, monkeypatch):
    monkeypatch.setattr(figures, "BATCHES", 4)
    few = "--config.likelihood.examples=24"
    main_run("figures", "--workdir", improved, few)
    folder = improved / "figures"
    own = {"skipping.png", "gradient_noise.png", "figures.json"}
    assert {path.name for path in folder.iterdir()} == ALONE | own
    numbers = json.loads((folder / "figures.json").read_text())
    assert set(numbers["gradient_noise"]) == {"L_vlb", "L_vlb, importance-sampled", "L_hybrid"}
    assert all(scale > 0 for scale in numbers["gradient_noise"].values())
    main_run("nll", "--workdir", improved, few)
    report = json.loads((improved / "nll" / "step4-test-20-examples24.json").read_text())
    nothing_skipped = numbers["skipping"]["bits_per_dim"][0]
    assert nothing_skipped == pytest.approx(report["bits_per_dim"], rel=1e-4)
