"""A trained run from its workdir: what it must agree with, how many steps a tolerance asks for."""

import numpy as np
import pytest
from one_line import PARAMS, run_of
from tiny import tiny_config

from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.open import check_same, manner, params_of, settled, weak_params
from diffusion_jax.runs.settings import copy, to_json


def test_a_tolerance_chooses_the_number_of_steps(capsys):
    config, parts = run_of(sampler="dpmpp_2m", grid="logsnr", tolerance=0.05, steps="7")
    config.diffusion.schedule.num_steps = 200

    def of_network():
        return build(config)._replace(apply_fn=parts.apply_fn)

    settled_parts = settled(config, of_network(), PARAMS, None)
    chosen = int(config.sampling.steps)
    assert len(settled_parts.grid.t) == chosen
    assert f"{chosen} steps" in capsys.readouterr().out
    images = []
    for num_steps in (chosen, 2 * chosen, chosen // 2):
        config.sampling.steps = str(num_steps)
        images.append(make_generate(config, of_network())(PARAMS, np.arange(20)))
    assert np.sqrt(np.mean((images[0] - images[1]) ** 2)) <= 0.05
    assert chosen == 5 or np.sqrt(np.mean((images[0] - images[2]) ** 2)) > 0.05
    config.sampling.tolerance = 1e-9
    with pytest.raises(UserError, match="config.sampling.tolerance cannot be kept"):
        settled(config, of_network(), PARAMS, None)
    config.sampling.grid = "explicit"
    with pytest.raises(UserError, match="which an explicit grid does not take"):
        settled(config, parts, PARAMS, None)


def test_a_run_is_opened_with_its_own_settings_but_for_those_of_drawing(tmp_path):
    (tmp_path / "config.json").write_text(to_json(tiny_config()))
    config = tiny_config()
    config.sampling.sampler = use("ddim", eta=0.3)
    config.model.remat = True
    check_same(config, tmp_path, "only so")
    config.diffusion.schedule.s = 0.01
    with pytest.raises(UserError, match="only so, not diffusion.schedule.s: 0.008 -> 0.01"):
        check_same(config, tmp_path, "only so")


def test_another_runs_parameters_must_be_of_the_same_network(tmp_path):
    config = tiny_config()
    with pytest.raises(UserError, match="^config.training.init must be the workdir of a run, but"):
        params_of(config, build(config), str(tmp_path), "training.init")
    other = copy(config)
    other.diffusion.schedule = use("linear", num_steps=30)
    other.model.channels = 8
    (tmp_path / "config.json").write_text(to_json(other))
    with pytest.raises(UserError) as error:
        params_of(config, build(config), str(tmp_path), "training.init")
    said = str(error.value)
    assert said.startswith(f"config.training.init={tmp_path} is a run of another network (")
    for part in ("model.channels: 8 -> 16", "diffusion.schedule: 'linear' -> 'cosine'", "more)"):
        assert part in said


def test_a_table_of_another_size_is_another_network(tmp_path):
    """Dropped labels are a setting of training, but they need a row of their own."""
    config = tiny_config()
    other = copy(config)
    other.conditioning.label.dropout = 0.1
    (tmp_path / "config.json").write_text(to_json(other))
    with pytest.raises(UserError, match=r"\(label/embedding: \(11, 64\) -> \(10, 64\)\)"):
        params_of(config, build(config), str(tmp_path), "sampling.guide.weak")


def test_without_a_weaker_run_there_are_no_weaker_parameters():
    config, parts = run_of()
    assert weak_params(config, parts) is None


def test_the_folder_of_samples_says_how_they_were_drawn():
    config, parts = run_of(guidance=1.5, seed=3, ema=False)
    assert manner(config, parts, 8) == "step8-ddim-5-raw-guidance1.5-seed3"
    config.sampling.steps = ",".join(["1"] * 30)
    assert manner(config, parts, 8) == "step8-ddim-5steps-raw-guidance1.5-seed3"
