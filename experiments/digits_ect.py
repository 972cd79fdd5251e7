"""One step for the digits by easy consistency tuning: the teacher of experiments/digits.py becomes
a consistency model (Geng et al. 2024).

Command:   python main.py --workdir runs/digits_ect --config experiments/digits_ect.py
           (after `make train`, whose runs/digits it starts from)
Hardware:  a laptop's CPU; 3 minutes of one core
Result:    FID 0.92 in one step and 0.45 in two, where DDIM of the teacher has 5.14 and 1.78, and
           its 100 ancestral steps 0.36; 97.6 % and 97.1 % recognised (benchmarks/few_steps.py,
           docs/few_steps.md)
"""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(source="digits", shape=(8, 8, 1), num_classes=10),
        conditioning=use("label", dropout=0.1),
        model=use(
            "unet", channels=32, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), heads=2
        ),
        diffusion=Diffusion(
            schedule="cosine",
            prediction="v",
            loss=use("easy_consistency", stage_steps=100),
            timesteps=use("lognormal", mean=-0.4, std=1.6),
        ),
        training=Training(
            init="runs/digits",
            num_steps=800,
            batch_size=64,
            learning_rate=5e-4,
            decay="cosine",
            warmup_steps=50,
            ema_decay=0.99,
            eval_every=0,
            sample_every=0,
            checkpoint_every=200,
            log_every=20,
        ),
        sampling=Sampling(sampler="consistency", grid="trailing", steps="1", num=100),
        evaluation=Evaluation(features="digits", num=2000, batch_size=500, bits_per_dim=0),
    )
