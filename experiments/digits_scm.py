"""One step for the digits by consistency in continuous time: sCD from a diffusion run whose network
embeds t smoothly (Lu & Song 2024).

Command:   python main.py --workdir runs/digits_slow --config experiments/digits.py \
               --config.model.time_scale=0.01
           python main.py --workdir runs/digits_scm --config experiments/digits_scm.py
Hardware:  a laptop's CPU; 9 minutes of one core, other work beside
Result:    FID 0.85 in one step, where 100 ancestral steps of experiments/digits.py have 0.36;
           92.7 % recognised (benchmarks/few_steps.py, docs/few_steps.md)
"""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(source="digits", shape=(8, 8, 1), num_classes=10),
        conditioning=use("label", dropout=0.1),
        model=use(
            "unet",
            channels=32,
            channel_mult=(1, 2),
            blocks=1,
            attention_resolutions=(4,),
            heads=2,
            time_scale=0.01,
        ),
        diffusion=Diffusion(
            schedule="cosine",
            prediction="v",
            loss=use("continuous_consistency", warmup=200),
            timesteps=use("lognormal", mean=-0.4, std=1.6),
        ),
        training=Training(
            init="runs/digits_slow",
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
