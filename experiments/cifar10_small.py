"""CIFAR-10 on a laptop: a small class-conditional U-Net, a few minutes to see the whole way from
data to FID.

Command:   python main.py --workdir runs/cifar_small --config experiments/cifar10_small.py
Hardware:  a laptop's CPU
Result:    blurred colours and shapes after the 200 steps; docs/results.md has the loss,
           the samples and their figures
"""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    source = use("tfds", name="cifar10:3.0.2")
    return Config(
        data=Data(source=source, shape=(32, 32, 3), num_classes=10, flip=True),
        conditioning=use("label", dropout=0.1),
        model=use(
            "unet",
            channels=32,
            channel_mult=(1, 2, 2),
            blocks=1,
            attention_resolutions=(8,),
            heads=2,
        ),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        training=Training(
            num_steps=200,
            batch_size=64,
            learning_rate=1e-3,
            warmup_steps=20,
            ema_decay=0.98,
            eval_every=50,
            eval_examples=256,
            sample_every=100,
            checkpoint_every=100,
            log_every=10,
        ),
        sampling=Sampling(sampler="dpmpp_2m", grid="logsnr", steps="20", num=100, batch_size=100),
        evaluation=Evaluation(num=300, bits_per_dim=8, memorised=100, replicates=10),
    )
