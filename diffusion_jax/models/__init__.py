"""Networks: flax only, no diffusion."""
