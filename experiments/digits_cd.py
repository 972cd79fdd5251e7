"""One step for the digits by consistency distillation: a student agrees at both ends of a step of
the teacher's ODE (Song et al. 2023).

Command:   python main.py --workdir runs/digits_cd --config experiments/digits_cd.py
           (after `make train`, whose runs/digits it starts from)
Hardware:  a laptop's CPU; 9 minutes of one core, other work beside
Result:    FID 0.53 in one step and, with --config.sampling.steps=991,500, 0.37 in two, where the
           teacher's 100 ancestral steps have 0.36; 95.9 % and 96.3 % recognised
           (benchmarks/few_steps.py, docs/few_steps.md)

One step is taken from index 991, sigma / alpha = 80, where the loss's grid ends.
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
            loss=use("consistency_distillation", levels=18, solver="heun", metric="huber"),
            timesteps="karras",
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
        sampling=Sampling(sampler="consistency", grid="explicit", steps="991", num=100),
        evaluation=Evaluation(features="digits", num=2000, batch_size=500, bits_per_dim=0),
    )
