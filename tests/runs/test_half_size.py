"""sampling.half_until: a run's chain that begins at half size, and what refuses it."""

import jax
import numpy as np
import pytest
from one_line import INDEX, PARAMS, run_of, two
from tiny import mlp_config

from diffusion_jax import samplers
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Kind, Kinds, Level
from diffusion_jax.denoisers import clip_x0
from diffusion_jax.runs.build import build
from diffusion_jax.runs.deadline import make_draw_until
from diffusion_jax.runs.draw import make_generate
from diffusion_jax.runs.half_size import half_size
from diffusion_jax.runs.settings import load, override, to_json
from diffusion_jax.samplers.half_size import matched

HALF = {"sampler": "dpmpp_2m", "grid": "logsnr", "steps": "6", "half_until": -1.0}


def half_run(**sampling):
    """`run_of` with HALF and other settings, its network's own parameters."""
    config, parts = run_of(**HALF | sampling)
    return config, parts._replace(init_params=lambda key: PARAMS)


def test_samples_begin_at_half_size_and_end_whole():
    config, parts = half_run()
    drawn = make_generate(config, parts)(PARAMS, INDEX)
    assert drawn.shape == (4, 8, 8, 1)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(INDEX)
    first, second = (jax.vmap(jax.random.fold_in, (0, None))(keys, number) for number in (0, 1))
    half = matched(parts.schedule, parts.grid, -1.0)
    assert 1 < len(half.t) < 6
    y = samplers.initial_noise(first, (4, 4, 1), Level(*(a[0] for a in half)))
    denoiser = clip_x0(two(parts)[0])
    own = samplers.sample_from_half(parts.sampler, denoiser, second, y, half, parts.grid)
    np.testing.assert_allclose(drawn, own, atol=1e-5)
    config, parts = half_run(half_until=None)
    assert abs(make_generate(config, parts)(PARAMS, INDEX) - drawn).max() > 0.01


def test_the_setting_is_kept(tmp_path):
    for given, value in (("-2.5", -2.5), ("none", None)):
        config = mlp_config()
        override(config, {"sampling.half_until": given})
        (tmp_path / "config.json").write_text(to_json(config))
        assert load(tmp_path / "config.json").sampling.half_until == value


def test_what_is_of_one_size_is_refused():
    config, parts = half_run()
    of = lambda parts, config=config: half_size(config, parts)
    network = build(mlp_config())  # of 64 numbers
    with pytest.raises(UserError, match=r"half_until must be none: the network takes no 4 x 4 \("):
        of(network)
    told = parts.problem.conditioner._replace(kinds=Kinds(low=Kind("image", 1)))
    with pytest.raises(UserError, match="the network is told low, an image of one size"):
        of(parts._replace(problem=parts.problem._replace(conditioner=told)))
    odd = parts.problem.codec._replace(shape=(8, 7, 1))
    with pytest.raises(UserError, match="of even height and width, not"):
        of(parts._replace(problem=parts.problem._replace(codec=odd)))
    with pytest.raises(UserError, match="at a log-SNR of at most"):
        half_size(*half_run(half_until=50.0))
    with pytest.raises(UserError, match="set config.sampling.quantize=false"):
        half_size(*half_run(quantize=True))


def test_what_is_shown_on_the_way_is_of_one_size():
    config, parts = half_run()
    with pytest.raises(UserError, match="a chain is shown at full size alone: set config.sampling"):
        make_generate(config, parts, trajectory=True)
    with pytest.raises(UserError, match="with early results a run draws at full size alone"):
        make_draw_until(config, parts)
