"""MeanFlow on CIFAR-10, without classes: one step from noise to an image, from scratch (Geng et al.
2025a).

Command:   python main.py --workdir runs/cifar10_mean_flow --config experiments/cifar10_mean_flow.py
Then:      python main.py evaluate --workdir runs/cifar10_mean_flow
Hardware:  one that trains 800,000 steps of a batch of 1,024; not yet measured here
Paper:     FID 2.92 in one step (the paper's, not our number)

Of the paper and its published PyTorch code: batch, rate, warm-up, dropout, average, the
logit-normal of mean -2 and deviation 2, r < t for 75 % of the examples, p = 0.75, and EDM's
augmentation in place of flips. Its network is NCSN++'s of 55 M parameters, this one Improved DDPM's
of 53 M, which embeds t by slower waves."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(source=use("tfds", name="cifar10:3.0.2"), shape=(32, 32, 3), num_classes=0),
        conditioning=("augmentation", "second_time"),
        model=use(
            "unet",
            channels=128,
            channel_mult=(1, 2, 2, 2),
            blocks=3,
            attention_resolutions=(16, 8),
            heads=4,
            dropout=0.2,
            time_scale=20.0,
        ),
        diffusion=Diffusion(
            schedule=use("rectified_flow", t_max=1.0),
            prediction="flow",
            timesteps=use("logit_normal", mean=-2.0, std=2.0),
            loss=use("mean_flow", moving=0.75, power=0.75),
        ),
        training=Training(
            num_steps=800_000,
            batch_size=1024,
            learning_rate=6e-4,
            warmup_steps=10_000,
            ema_decay=0.99995,
            sample_every=10_000,
            checkpoint_every=10_000,
            eval_every=10_000,
        ),
        sampling=Sampling(sampler="flow_map", grid="trailing", steps="1"),
        evaluation=Evaluation(bits_per_dim=0),
    )
