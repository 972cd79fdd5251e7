"""The command `rate`: people judge two sets of images blind, side by side."""

from diffusion_jax.command_line import Given


def command(given: Given) -> str:
    return ""
