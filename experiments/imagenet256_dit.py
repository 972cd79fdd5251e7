"""DiT-XL/2 (Peebles & Xie 2023) on ImageNet 256 x 256, in the latents, 32 x 32 x 4, of Stable
Diffusion's autoencoder.

Command:   python main.py encode --config experiments/imagenet256_dit.py --folder LATENTS
           python main.py --workdir runs/imagenet256_dit --config experiments/imagenet256_dit.py
               --config.data.source=latents --config.data.source.folder=LATENTS
Needs:     data/imagenet, the images in train/CLASS and val/CLASS; weights/sd-vae-ft-ema, a folder
           of diffusers' AutoencoderKL, config.json and diffusion_pytorch_model.safetensors
Hardware:  a TPU v3 pod in the paper; not yet measured here
Paper:     FID 2.27 with guidance 1.5 after 7 M steps, 9.62 without (table 2 of the paper, not our
           numbers); 400 K steps are those of its comparisons

Of the paper: linear schedule, T = 1000, learning rate 1e-4 without warm-up, batch 256, EMA 0.9999,
horizontal flips, labels dropped with probability 0.1, 250 steps. Its guidance of 1.5 is a weight w
of 0.5 here. Two things differ. It learns the variance, too, by L_hybrid, whose last term is of
8-bit values, which latents have none of: here the variance is fixed. It multiplies all latents by
0.18215, where here each channel is whitened to deviation 1."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(
            source=use("folder", folder="data/imagenet"),
            shape=(256, 256, 3),
            num_classes=1000,
            eval_split="val",
            flip=True,
        ),
        codec=use("autoencoder", weights="weights/sd-vae-ft-ema", sigma_data=1.0),
        conditioning=use("label", dropout=0.1),
        model=use("dit", size="XL", patch=2, dtype="bfloat16"),
        diffusion=Diffusion(schedule=use("linear", num_steps=1000), prediction="eps"),
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
        sampling=Sampling(sampler="ancestral", steps="250", num=64, guidance=0.5),
        evaluation=Evaluation(num=50_000, bits_per_dim=0),
    )
