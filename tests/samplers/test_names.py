"""Names by which other programs know samplers and grids."""

import pytest
from tiny import ROOT

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.runs.config import Sampling, use
from diffusion_jax.samplers import SAMPLERS, names

PAIRS = [
    ("DPM++ 2M Karras", ("dpmpp_2m", {}, "karras")),
    ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", {}, None)),
    ("DPM++ 2M SDE Heun Exponential", ("dpmpp_2m_sde", {"variant": "heun"}, "exponential")),
    ("dpmpp_2m_sde_heun_gpu", ("dpmpp_2m_sde", {"variant": "heun"}, None)),
    ("DPM++ 3M SDE", ("dpmpp_3m_sde", {}, None)),
    ("DPM++ 2S a Karras", ("dpmpp_2s_ancestral", {}, "karras")),
    ("DPM++ SDE", ("dpmpp_sde", {}, None)),
    ("Euler a", ("euler_ancestral", {}, None)),
    ("k_euler_a", ("euler_ancestral", {}, None)),
    ("k_euler", ("euler", {}, None)),
    ("euler_ancestral simple", ("euler_ancestral", {}, "simple")),
    ("EulerAncestralDiscreteScheduler", ("euler_ancestral", {}, None)),
    ("sample_dpm_2_ancestral", ("dpm2_ancestral", {}, None)),
    ("DPM2 a", ("dpm2_ancestral", {}, None)),
    ("k_dpm_2_a", ("dpm2_ancestral", {}, None)),
    ("LMS Karras", ("lms", {}, "karras")),
    ("PLMS", ("pndm", {}, None)),
    ("DEIS", ("deis", {}, None)),
    ("UniPC", ("unipc", {}, None)),
    ("uni_pc", ("unipc", {"bh": "bh1"}, None)),
    ("uni_pc karras", ("unipc", {"bh": "bh1"}, "karras")),
    ("uni_pc_bh2", ("unipc", {}, None)),
    ("Restart", ("restart", {}, None)),
    ("DDIM DDIM Uniform", ("ddim", {}, "leading")),
    ("DDPM", ("ancestral", {}, None)),
    ("Euler SGM Uniform", ("euler", {}, "sgm_uniform")),
    ("Euler AYS", ("euler", {}, "align_your_steps")),
    ("DPMSolverMultistepScheduler", ("dpmpp_2m", {}, None)),
    ("dpm_fast", None),
    ("Euler Karras Karras", None),
    ("Karras", None),
    ("", None),
]


@pytest.mark.parametrize(("name", "expected"), PAIRS)
def test_a_name_stands_for_our_entry_its_arguments_and_its_grid(name, expected):
    found = names.resolve(name)
    if expected is None:
        assert found is None
    else:
        entry, given, grid = expected
        assert found == (entry, given, {"grid": grid} if grid else {})


def test_in_an_experiment_file_a_name_brings_its_grid_where_none_is_given():
    assert Sampling(sampler="DPM++ 2M Karras").grid.entry == "karras"
    assert Sampling(sampler="DPM++ 2M Karras", grid="logsnr").grid.entry == "logsnr"
    assert Sampling(sampler="DPM++ 2M").grid.entry == "respaced"
    with pytest.raises(UserError, match="names more than dpmpp_2m; use the name alone"):
        Sampling(sampler=use("DPM++ 2M Karras"))


def test_every_row_of_the_table_is_of_an_entry_and_of_its_arguments():
    for known in names.KNOWN:
        SAMPLERS[known.entry](**known.given)
        for name in (*known.k_diffusion, *known.diffusers, *known.web):
            if " with " not in name:
                assert names.resolve(name)[:2] == (known.entry, known.given), name
    assert set(names.GRIDS.values()) <= set(GRIDS)
    for name in SAMPLERS:  # ours in another spelling
        found = names.resolve(name.upper())
        assert found is None or found == (name, {}, {})


def test_the_peers_names_are_those_of_the_peers(reference):
    peer = reference("samplers.npz")
    for known in names.KNOWN:
        assert set(known.diffusers) <= set(peer["schedulers"])
        functions = {name.partition(" with ")[0] for name in known.k_diffusion}
        assert functions <= set(peer["functions"])


def test_an_unknown_name_is_answered_with_the_nearest_of_anyones():
    near = lambda name: names.near(name, list(SAMPLERS))
    assert near("Euler aa") == "did you mean 'Euler a'?"
    assert near("dimm") == "did you mean 'ddim'?"
    assert near("zzzz").startswith("known: adaptive_ode, ")


def test_the_page_has_the_table():
    page = (ROOT / "docs" / "samplers.md").read_text().split("<!-- names -->")[1]
    lines = [line.strip("| ").split(" | ") for line in page.split("<!-- end -->")[0].splitlines()]
    shown = [tuple(cell.strip(" `|") for cell in line) for line in lines if "`" in line[0]]
    trimmed = [tuple(cell for cell in row if cell) for row in names.rows()]
    assert [tuple(cell for cell in row if cell) for row in shown] == trimmed
