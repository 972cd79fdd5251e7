"""Training-time distributions of t.

Example number i of a step draws from fold_in(key, i), so that it meets the same t whatever the number of devices.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.types import Schedule, Timesteps


def uniform(schedule: Schedule) -> Timesteps:
    """t uniform over the table's indices, or over [t_min, t_max] in continuous time; weights 1 (Ho et al. 2020, alg. 1)."""

    def one(key, index):
        key = jax.random.fold_in(key, index)
        if schedule.num_steps is not None:
            return jax.random.randint(key, (), 0, schedule.num_steps)
        return jax.random.uniform(key, (), minval=schedule.t_min, maxval=schedule.t_max)

    def sample(state, key, index, total):
        return jax.vmap(one, (None, 0))(key, index), jnp.ones(index.shape)

    return Timesteps(init=lambda: (), sample=sample, update=lambda state, t, losses: state)


TIMESTEPS = {"uniform": uniform}
