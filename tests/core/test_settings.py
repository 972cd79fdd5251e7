"""Settings: every argument of a registry's entry with a plain type has a default, a meaning and a
range."""

import inspect
import re
import types
import typing

import numpy as np
import pytest

from diffusion_jax.core import schedules
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.predictions import PREDICTIONS
from diffusion_jax.core.schedules import SCHEDULES
from diffusion_jax.core.settings import above, at_least, inside, one_of
from diffusion_jax.core.timesteps import TIMESTEPS
from diffusion_jax.core.weightings import WEIGHTINGS
from diffusion_jax.objectives.losses import LOSSES, denoising
from diffusion_jax.samplers import MAX_GAMMA, SAMPLERS, edm_churn

REGISTRIES = {
    "schedules": SCHEDULES,
    "predictions": PREDICTIONS,
    "weightings": WEIGHTINGS,
    "timesteps": TIMESTEPS,
    "grids": GRIDS,
    "samplers": SAMPLERS,
    "losses": LOSSES,
}
FACTORIES = {
    f"{registry}.{name}": factory
    for registry, entries in REGISTRIES.items()
    for name, factory in entries.items()
}


def plain(annotation) -> bool:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return all(plain(part) for part in typing.get_args(annotation))
    if typing.get_origin(annotation) is typing.Literal:
        return all(isinstance(name, str) for name in typing.get_args(annotation))
    return annotation in (int, float, bool, str, types.NoneType)


def settings(factory) -> dict:
    parameters = inspect.signature(factory, eval_str=True).parameters
    return {name: p for name, p in parameters.items() if plain(p.annotation)}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_setting_has_a_default_and_a_line_in_args(name):
    factory = FACTORIES[name]
    documentation = inspect.getdoc(factory) or ""
    block = documentation.partition("Args:\n")[2].partition("\n\n")[0]
    entries = dict(re.findall(r"^  (\w+): (\S.*)", block, re.MULTILINE))
    assert settings(factory).keys() <= entries.keys()
    for setting in settings(factory).values():
        assert setting.default is not inspect.Parameter.empty
    for parameter in inspect.signature(factory).parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


OUT_OF_RANGE = {
    "schedules.linear": [{"num_steps": 0}, {"beta_start": 0.0}, {"beta_end": 2.0}],
    "schedules.cosine": [{"num_steps": 0}, {"s": -1.0}, {"s": float("nan")}],
    "schedules.sigmoid": [{"tau": 0.0}, {"start": 3.0}, {"num_steps": -1}],
    "schedules.vp": [
        {"beta_min": -1.0},
        {"t_min": 0.0},
        {"t_max": float("inf")},
        {"shift": float("inf")},
    ],
    "schedules.sub_vp": [{"beta_min": 30.0}, {"t_min": 1.0}],
    "schedules.ve": [{"sigma_min": 0.0}, {"sigma_max": 0.001}],
    "schedules.edm": [{"sigma_min": -0.1}, {"sigma_max": float("nan")}],
    "schedules.rectified_flow": [{"t_max": 1.5}, {"t_min": 0.0}],
    "schedules.linear_logsnr": [{"logsnr_min": 20.0}],
    "schedules.cosine_logsnr": [
        {"logsnr_max": -20.0},
        {"shift": float("nan")},
        {"noisy_shift": 9.0},
    ],
    "predictions.edm": [{"sigma_data": 0.0}],
    "weightings.min_snr": [{"gamma": 0.0}],
    "weightings.p2": [{"gamma": -1.0}, {"k": 0.0}],
    "weightings.edm": [{"sigma_data": -1.0}],
    "timesteps.second_moment": [{"history": 0}, {"uniform_part": 1.5}],
    "timesteps.lognormal": [{"std": 0.0}],
    "timesteps.logit_normal": [{"std": -1.0}, {"shift": 0.0}],
    "timesteps.shifted": [{"shift": -1.0}],
    "grids.uniform": [{"num_steps": 0}],
    "grids.karras": [{"num_steps": 0}, {"rho": 0.0}],
    "grids.logsnr": [{"num_steps": 0}],
    "grids.quadratic": [{"num_steps": 0}],
    "grids.shifted": [{"num_steps": 0}, {"shift": 0.0}],
    "grids.trailing": [{"num_steps": 0}],
    "grids.leading": [{"num_steps": 0}],
    "grids.respaced": [{"spacing": "0"}],
    "grids.exponential": [{"num_steps": 0}],
    "grids.polyexponential": [{"num_steps": 0}, {"rho": 0.0}],
    "grids.beta": [{"num_steps": 0}, {"alpha": 0.0}, {"beta": -1.0}],
    "grids.simple": [{"num_steps": 0}],
    "grids.sgm_uniform": [{"num_steps": 0}],
    "grids.align_your_steps": [{"num_steps": 0}, {"model": "sd3"}],
    "samplers.ancestral": [{"variance": "medium"}],
    "samplers.ddim": [{"eta": -0.1}, {"eta": 1.1}],
    "samplers.edm_churn": [
        {"gamma": 0.5},
        {"noise_scale": 0.0},
        {"least": -1.0},
        {"most": 0.01},
        {"churn": -1.0},
        {"churn": 1.0},  # without the grid
    ],
    "samplers.euler_churn": [{"gamma": 0.5}, {"noise_scale": 0.0}, {"churn": 1.0}],
    "samplers.euler_ancestral": [{"eta": -0.1}, {"eta": 1.1}],
    "samplers.dpm2_ancestral": [{"eta": 1.1}],
    "samplers.dpmpp_2s_ancestral": [{"eta": -0.1}],
    "samplers.dpmpp_sde": [{"eta": 1.1}, {"r": 0.0}, {"r": 1.0}],
    "samplers.dpmpp_2m_sde": [{"variant": "euler"}, {"eta": 1.1}],
    "samplers.dpmpp_3m_sde": [{"eta": -0.1}],
    "samplers.unipc": [{"bh": "bh3"}],
    "samplers.lms": [{"order": 0}, {"order": 5}],
    "samplers.deis": [{"order": 0}, {"order": 5}],
    "samplers.er_sde": [{"order": 0}, {"order": 4}],
    "samplers.restart": [{"least": 0.0}, {"most": 0.1}, {"repeats": 0}, {"steps": 0}],
    "samplers.predictor_corrector": [{"snr": 0.0}, {"steps": 0}],
    "samplers.annealed_langevin": [{"size": 0.0}, {"steps": 0}],
    "samplers.adaptive_ode": [{"rtol": 0.0}, {"atol": -1.0}],
    "losses.denoising": [{"norm": "l3"}],
    "losses.vlb": [{"variance": "medium"}],
    "losses.hybrid": [{"coefficient": -1.0}, {"norm": "l3"}],
}


def _given(factory) -> dict:
    """What a run gives a factory beside its settings."""
    nouns = {"schedule": schedules.cosine(20), "parameterization": PREDICTIONS["eps"]()}
    return {n: nouns[n] for n in inspect.signature(factory).parameters if n in nouns}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_setting_out_of_range_is_refused_when_the_factory_is_called(name):
    factory = FACTORIES[name]
    factory(**_given(factory))
    for chosen in OUT_OF_RANGE[name]:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            factory(**_given(factory), **chosen)
        assert "\n" not in str(error.value)


def test_checks_name_the_setting_the_range_and_the_value():
    for check, message in (
        (lambda: above(0, s=0.0), "s must be above 0, not 0.0"),
        (lambda: at_least(1, n=0), "n must be at least 1, not 0"),
        (lambda: inside(0, 1, eta=2.0), "eta must lie in [0, 1], not 2.0"),
        (lambda: one_of(("a", "b"), name="c"), "name is one of a, b, not 'c'"),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            check()
        assert str(error.value) == message
    above(0, a=1.0), at_least(1, a=1), inside(0, 1, a=0, b=1)


def test_churn_is_divided_by_the_grids_length():
    # Karras et al. 2022, algorithm 2: gamma = min(S_churn / N, sqrt(2) - 1)
    grid = GRIDS["karras"](schedules.edm(), 16)
    assert edm_churn(churn=4.0, grid=grid) == edm_churn(gamma=0.25)
    assert edm_churn(churn=40.0, grid=grid) == edm_churn(gamma=MAX_GAMMA)
    assert edm_churn(0.2, grid=grid) == edm_churn(0.2)
    assert hash(edm_churn(churn=4.0, grid=grid)) == hash(edm_churn(0.25))
    assert repr(edm_churn(churn=4.0, grid=grid)).endswith(
        "churn=4.0, grid=Level(float32[16], float32[16], float32[16]))"
    )


def test_a_grid_without_a_number_of_steps_has_a_tables_number():
    for name, grid in GRIDS.items():
        if name != "explicit":
            assert len(grid(schedules.cosine(20)).t) == 20
        if name in ("uniform", "trailing", "leading", "respaced"):
            np.testing.assert_array_equal(grid(schedules.cosine(20)).t, np.arange(19, -1, -1))


def test_a_loss_is_known_by_its_call():
    loss = denoising(PREDICTIONS["eps"](), weighting=WEIGHTINGS["min_snr"](5))
    assert repr(loss) == (
        "denoising(parameterization=eps(), norm='l2', weighting=min_snr(gamma=5.0))"
    )
