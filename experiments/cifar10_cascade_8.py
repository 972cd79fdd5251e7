"""CIFAR-10 at 8 x 8, the first run of a cascade 8 -> 16 -> 32 (Ho et al. 2022).

Command:   python main.py --workdir runs/cifar8 --config experiments/cifar10_cascade_8.py
           python main.py --workdir runs/cifar16 --config experiments/cifar10_cascade_16.py
           python main.py --workdir runs/cifar32 --config experiments/cifar10_cascade_32.py
           python main.py sample --workdir runs/cifar8,runs/cifar16,runs/cifar32
Hardware:  one NVIDIA GPU of Ampere or later
Result:    not measured; experiments/digits_sr8.py is a small twin, with measured numbers
"""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(
            source=use("tfds", name="cifar10:3.0.2", average=4),
            shape=(8, 8, 3),
            num_classes=10,
            flip=True,
        ),
        conditioning=use("label", dropout=0.1),
        model=use(
            "unet",
            channels=128,
            channel_mult=(1, 2),
            blocks=2,
            attention_resolutions=(8, 4),
            head_channels=32,
            dropout=0.1,
            dtype="bfloat16",
        ),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        training=Training(
            num_steps=100_000,
            batch_size=256,
            learning_rate=2e-4,
            warmup_steps=1000,
            ema_decay=0.9999,
            steps_per_call=10,
            eval_every=5000,
            sample_every=10_000,
            checkpoint_every=5000,
        ),
        sampling=Sampling(sampler="dpmpp_2m", grid="logsnr", steps="30"),
        evaluation=Evaluation(num=50_000),
    )
