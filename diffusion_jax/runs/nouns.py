"""The networks of others that factories are given by the run, since they lie above these."""

from typing import Any

from diffusion_jax.codecs import Autoencoders
from diffusion_jax.conditioning import Encoders
from diffusion_jax.models.text import ENCODERS
from diffusion_jax.runs.autoencoders import AUTOENCODERS

OTHERS: dict[Any, Any] = {Encoders: ENCODERS, Autoencoders: AUTOENCODERS}
