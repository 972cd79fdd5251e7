"""Likelihoods and adaptive solves ask for products of full precision, whatever the default."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import grids, noise, predictions, schedules
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.likelihood import bound, bound_monte_carlo, ode
from diffusion_jax.samplers import adaptive_ode, ddim, sample

SCHEDULE = schedules.vp()
GRID = grids.logsnr(SCHEDULE, 3)
X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
KEYS = noise.example_keys(noise.key(0), np.arange(2))
DENOISER = make_denoiser(
    lambda params, x, t, cond: jnp.tanh(x @ params), jnp.eye(4), predictions.v()
)


def _precisions(jaxpr) -> list:
    """Of every product in a program, loops and branches included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda a: hasattr(a, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += _precisions(inner)
    return found


PROGRAMS = {
    "log_likelihood": lambda x: ode.log_likelihood(DENOISER, x, SCHEDULE, KEYS),
    "exact": lambda x: ode.log_likelihood(DENOISER, x, SCHEDULE),
    "divergence": lambda x: ode.divergence(lambda z: DENOISER(z, SCHEDULE.level(0.5)).x0, x),
    "solve": lambda x: ode.solve(lambda tau, z: z @ jnp.eye(4), x, 1e-3, 1e-3),
    "bound": lambda x: bound(DENOISER, KEYS, x, GRID, "fixed_small"),
    "bound_monte_carlo": lambda x: bound_monte_carlo(DENOISER, KEYS, x, GRID, "fixed_small"),
    "adaptive_ode": lambda x: sample(adaptive_ode(), DENOISER, None, x, GRID),
}
HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize("name", PROGRAMS)
def test_products_are_of_full_precision(name):
    found = _precisions(jax.make_jaxpr(PROGRAMS[name])(X).jaxpr)
    assert found
    if name == "adaptive_ode":  # its last hop is the chain's, as of every sampler
        assert found.count(HIGHEST) >= len(found) - 1 > 0
    else:
        assert set(found) == {HIGHEST}


def test_other_samplers_keep_the_default():
    program = lambda x: sample(ddim(), DENOISER, None, x, GRID)
    assert set(_precisions(jax.make_jaxpr(program)(X).jaxpr)) == {None}
