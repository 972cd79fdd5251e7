"""Handwritten digits, 8 x 8, class-conditional: the main job, for a laptop.

Command:   python main.py --workdir runs/digits --config experiments/digits.py
Hardware:  a laptop's CPU; about two minutes on two cores
Result:    98.0 % of 1,000 samples recognised as the digit asked for (benchmarks/digits_quality.py)
"""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(source="digits", shape=(8, 8, 1), num_classes=10),
        conditioning=use("label", dropout=0.1),
        model=use(
            "unet", channels=32, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), heads=2
        ),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        training=Training(
            num_steps=1000,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=100,
            ema_decay=0.995,
            eval_every=250,
            sample_every=500,
            checkpoint_every=250,
            log_every=20,
        ),
        sampling=Sampling(sampler="ancestral", steps="100", num=100),
        evaluation=Evaluation(features="digits", num=2000, batch_size=500),
    )
