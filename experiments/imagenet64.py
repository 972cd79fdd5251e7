"""Improved DDPM on ImageNet 64 x 64, unconditional (Nichol & Dhariwal 2021): cosine, T = 4000,
L_hybrid.

Command:   python main.py --workdir runs/imagenet64 --config experiments/imagenet64.py
Hardware:  the paper does not say; 120 M parameters. Not yet measured here.
Paper:     FID 19.2 and bits/dim 3.57 for L_hybrid after 1.5 million steps (table 1 of the
           paper, not our numbers)

The setting is that of the paper's appendix A and its code: 128 channels, multipliers 1, 2, 3, 4,
three residual blocks a level, attention of four heads at 16 x 16 and 8 x 8, scale-shift norm, no
dropout, learning rate 1e-4, batch 128, EMA 0.9999."""

from diffusion_jax.runs.config import Config, Data, use
from experiments import cosine


def get_config() -> Config:
    config = cosine.get_config()
    config.data = Data(
        source=use("tfds", name="imagenet_resized/64x64"),
        shape=(64, 64, 3),
        num_classes=0,
        eval_split="validation",
    )
    config.likelihood.split = "validation"
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.dropout = 0.0
    config.training.num_steps = 1_500_000
    return config
