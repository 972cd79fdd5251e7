"""Improved DDPM on CIFAR-10 (Nichol & Dhariwal 2021): cosine schedule, T = 4000, learned variance,
L_hybrid.

Command:   python main.py --workdir runs/cosine --config experiments/cosine.py
Hardware:  the paper does not say. On one H100 expect days; not yet measured here.
Paper:     FID 3.19 and bits/dim 3.17 for L_hybrid after 500,000 steps (table 2 of the paper,
           not our numbers)

The setting is that of the paper's appendix A and its code: 128 channels, multipliers 1, 2, 2, 2,
three residual blocks a level, attention of four heads at 16 x 16 and 8 x 8, scale-shift norm,
dropout 0.3, learning rate 1e-4, batch 128, EMA 0.9999, no horizontal flips. The network embeds t
1000 / T, as that code does."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(source=use("tfds", name="cifar10"), shape=(32, 32, 3), num_classes=0),
        model=use(
            "unet",
            blocks=3,
            attention_resolutions=(16, 8),
            heads=4,
            learned_variance=True,
            time_scale=1000 / 4000,
            dropout=0.3,
        ),
        diffusion=Diffusion(
            schedule=use("cosine", num_steps=4000), prediction="eps", loss="hybrid"
        ),
        training=Training(
            num_steps=500_000,
            warmup_steps=0,
            clip_norm=0.0,
            eval_every=10_000,
            sample_every=10_000,
            checkpoint_every=10_000,
        ),
        sampling=Sampling(sampler="ancestral", steps="250", num=64),
    )
