"""How probable data are: the variational bound (`bound`), and the density by the
probability-flow ODE (`ode`)."""

from diffusion_jax.likelihood.variational import (
    Bound,
    best_steps,
    bound,
    bound_monte_carlo,
    prior_bits,
)

__all__ = ["Bound", "best_steps", "bound", "bound_monte_carlo", "prior_bits"]
