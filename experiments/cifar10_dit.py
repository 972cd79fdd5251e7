"""DiT-S/2 (Peebles & Xie 2023) on the pixels of CIFAR-10, class-conditional.

Command:   python main.py --workdir runs/cifar10_dit --config experiments/cifar10_dit.py
Hardware:  a GPU; not yet measured here

The setting is that of the paper's section 4, which is of ImageNet in an autoencoder's latents:
linear schedule, T = 1000, learned variance, learning rate 1e-4 without warm-up, batch 256, EMA
0.9999, horizontal flips, labels dropped with probability 0.1. The modern block is
--config.model.norm=rms --config.model.qk_norm=true --config.model.positions=rotary
--config.model.mlp=swiglu."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(source=use("tfds", name="cifar10"), shape=(32, 32, 3), num_classes=10, flip=True),
        conditioning=use("label", dropout=0.1),
        model=use("dit", size="S", patch=2, learned_variance=True, dtype="bfloat16"),
        diffusion=Diffusion(
            schedule=use("linear", num_steps=1000), prediction="eps", loss="hybrid"
        ),
        training=Training(
            num_steps=400_000,
            batch_size=256,
            learning_rate=1e-4,
            warmup_steps=0,
            clip_norm=0.0,
            eval_every=10_000,
            sample_every=10_000,
            checkpoint_every=10_000,
        ),
        sampling=Sampling(sampler="ancestral", steps="250", num=100, guidance=0.5),
    )
