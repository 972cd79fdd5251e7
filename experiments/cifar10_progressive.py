"""Progressive distillation on CIFAR-10, without classes (Salimans & Ho 2022): the teacher.

Command:   python main.py --workdir runs/cifar10_teacher --config experiments/cifar10_progressive.py
Then:      python main.py distill --workdir runs/cifar10_student --teacher runs/cifar10_teacher \\
               --to 1 --from 8192 --config.training.num_steps=50000 \\
               --config.training.learning_rate=5e-5 --config.training.ema_decay=0
Hardware:  the paper's is 8 TPUv4 chips; not yet measured here
Paper:     FID 9.12 in 1 step, 4.51 in 2, 3.00 in 4, 2.57 in 8 (table 2 of the paper, not our
           numbers)

Network, schedule, prediction, weighting and training, of both commands, are those of the settings
that the authors published: x0 predicted, weighted by max(snr, 1), the cosine's log-SNR from 20 to
-20, batches of 128, a student's learning rate a quarter of its teacher's and falling linearly to 0
in every round of 50,000 steps, no dropout and no average. They leave open how long the teacher is
trained: 800,000 steps are DDPM's."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(
            source=use("tfds", name="cifar10:3.0.2"), shape=(32, 32, 3), num_classes=0, flip=True
        ),
        conditioning=(),
        model=use(
            "unet",
            channels=256,
            channel_mult=(1, 1, 1),
            blocks=3,
            attention_resolutions=(8, 16),
            heads=1,
            resample_blocks=True,
            dropout=0.2,
            time_scale=1000.0,
        ),
        diffusion=Diffusion(
            schedule=use("cosine_logsnr", logsnr_min=-20.0, logsnr_max=20.0),
            prediction="x0",
            weighting="truncated_snr",
        ),
        training=Training(
            num_steps=800_000,
            batch_size=128,
            optimizer=use("adamw", weight_decay=0.001),
            learning_rate=2e-4,
            warmup_steps=1000,
            ema_decay=0.9999,
            checkpoint_every=10_000,
            sample_every=10_000,
            eval_every=10_000,
        ),
        sampling=Sampling(sampler="ddim", grid="trailing", steps="1024"),
    )
