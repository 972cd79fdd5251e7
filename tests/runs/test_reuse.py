"""sampling.cache_every: a run's chain from kept deep features, by a loop over its network."""

import jax
import numpy as np
import pytest
from tiny import mlp_config, tiny_config

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.noise import fold_in, initial_noise
from diffusion_jax.models.reuse import Reuse
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.draw import chain_of, make_examples, make_generate

W = 1.5


def cached_config(**sampling):
    config = tiny_config()
    config.conditioning.label.dropout = 0.1
    config.sampling.sampler, config.sampling.grid, config.sampling.steps = "ddim", "trailing", "3"
    config.sampling.guidance, config.sampling.clip_x0 = W, False
    config.sampling.cache_every = 2
    for name, value in sampling.items():
        setattr(config.sampling, name, value)
    return config


def test_a_guided_chain_keeps_the_features_of_both_branches():
    config = cached_config()
    parts = build(config)
    rng = np.random.default_rng(0)
    draw = lambda a: (0.1 * rng.standard_normal(a.shape)).astype(np.float32)
    params = jax.tree.map(draw, jax.eval_shape(parts.init_params, jax.random.key(0)))
    found = make_generate(config, parts)(params, np.arange(4))

    examples = make_examples(config, parts)(np.arange(4))
    keys = chain_of(config, parts, (params, None), examples)[0]
    first = jax.tree.map(lambda a: a[0], parts.grid)
    x = np.asarray(initial_noise(fold_in(keys, 0), tuple(parts.codec.shape), first))
    cond = {"label": np.arange(4)}  # 10 is no label
    none = {"label": np.full(4, 10)}
    call = jax.jit(
        lambda x, t, cond, deep: parts.apply_fn.reusing(params, x, t, cond, Reuse(0, deep))
    )
    kept = {}
    for i in range(3):
        alpha, sigma, t = (float(a[i]) for a in (parts.grid.alpha, parts.grid.sigma, parts.grid.t))
        outputs = []
        for name, told in (("c", cond), ("u", none)):
            whole = i % 2 == 0  # the third is the last hop, which is whole, too
            output, kept[name] = call(x, np.full(4, t), told, None if whole else kept[name])
            outputs.append(np.asarray(output))
        eps = (1 + W) * outputs[0] - W * outputs[1]
        x0 = (x - sigma * eps) / alpha
        if i < 2:
            x = float(parts.grid.alpha[i + 1]) * x0 + float(parts.grid.sigma[i + 1]) * eps
    np.testing.assert_allclose(found, x0, atol=2e-3 * abs(x0).max())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guide": use("classifier_free", interval=(0.3, 3.0))}, "has an interval or is cached"),
        ({"guide": use("classifier_free", every=2)}, "has an interval or is cached"),
        ({"cache_blocks": 2}, "cache_blocks: blocks must be at most 1 of this network, not 2"),
        ({"sampler": "flow_map"}, "must be 1 with config.sampling.sampler=flow_map"),
    ],
)
def test_what_cannot_be_kept_is_refused(change, words):
    config = cached_config(**change)
    parts = build(config)
    params = jax.eval_shape(parts.init_params, jax.random.key(0))
    examples = make_examples(config, parts)(np.arange(4))
    with pytest.raises(UserError, match=words):
        jax.eval_shape(lambda params: make_chain(config, parts, params, examples), params)


def make_chain(config, parts, params, examples):
    keys, _, sampler = chain_of(config, parts, (params, None), examples)
    return sampler.init(
        np.zeros((4, 8, 8, 1), np.float32), jax.tree.map(lambda a: a[0], parts.grid)
    )


def test_a_network_without_deep_features_is_refused():
    config = mlp_config()
    config.sampling.cache_every = 2
    parts = build(config)
    params = jax.eval_shape(parts.init_params, jax.random.key(0))
    examples = make_examples(config, parts)(np.arange(4))
    with pytest.raises(UserError, match="cache_every must be 1: mlp has no deep features"):
        jax.eval_shape(lambda params: make_chain(config, parts, params, examples), params)
