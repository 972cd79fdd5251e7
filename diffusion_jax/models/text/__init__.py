"""Text encoders: BERT, CLIP's text tower and T5's encoder, and their features, kept on the disk."""

from diffusion_jax.models.text.load import TextEncoder, load

__all__ = ["TextEncoder", "load"]
