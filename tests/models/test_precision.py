"""The copy of the parameters that a network computes with."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.precision import cast, recorded


class Two(nn.Module):
    """Layers of each precision, one of them rematerialised, and a norm, which computes in
    float32."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3, dtype=jnp.bfloat16, name="half")(x)
        x = nn.remat(nn.Dense)(3, dtype=jnp.bfloat16, name="again")(x)
        x = nn.LayerNorm(dtype=jnp.bfloat16, name="norm")(x)
        return nn.Dense(3, dtype=jnp.float32, name="single")(x)


def test_a_layers_parameters_are_those_of_its_precision():
    with recorded() as precisions:
        params = jax.eval_shape(lambda: Two().init(jax.random.key(0), jnp.ones((1, 2)))["params"])
    found = jax.tree.map(
        lambda a: str(a.dtype),
        jax.eval_shape(lambda params: cast(params, tuple(precisions.items())), params),
    )
    half = {"kernel": "bfloat16", "bias": "bfloat16"}
    assert found == {
        "half": half,
        "again": half,
        "single": dict.fromkeys(half, "float32"),
        "norm": {"scale": "float32", "bias": "float32"},
    }


def test_nothing_is_changed_where_nothing_is_recorded():
    params = {"layer": {"kernel": jnp.ones(2)}}
    assert cast(params, ()) is params
    assert cast((), ((("layer",), "bfloat16"),)) == ()
