"""EDM2 on ImageNet 64 x 64, by class (Karras et al. 2024): a magnitude-preserving U-Net of 125 M
parameters, uncertainty as the weight of a noise level, averages of any length afterwards.

Command:   python main.py --workdir runs/imagenet64_edm2 --config experiments/imagenet64_edm2.py
Then:      python main.py evaluate --workdir runs/imagenet64_edm2
               --config.evaluation.ema_lengths=0.03,0.05,0.1,0.15
Hardware:  the paper's is 32 A100; not yet measured here
Paper:     FID 1.58 for S, 280 M parameters, in 63 evaluations of the network (table 3 of the paper,
           not our number); it has no XS of this size

Of the paper: the width and the learning rate of XS, which it trains on ImageNet 512, and for
ImageNet 64 x 64 (table 6) batch 2048, 2^20 steps, the rate's decay from step 35,000, noise levels
of P_mean -0.8 and P_std 1.6, Adam's beta2 0.99, no dropout, averages of 0.05 and 0.10. It computes
in float16, this in bfloat16."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(
            source=use("tfds", name="imagenet_resized/64x64"),
            shape=(64, 64, 3),
            num_classes=1000,
            eval_split="validation",
            flip=True,
        ),
        conditioning=use("label", dropout=0.0),
        model=use("edm2", channels=128, dtype="bfloat16"),
        diffusion=Diffusion(
            schedule="edm",
            prediction="edm",
            loss="uncertainty",
            weighting="edm",
            timesteps=use("lognormal", mean=-0.8, std=1.6),
        ),
        training=Training(
            num_steps=2**20,
            batch_size=2048,
            optimizer=use("adam", b2=0.99),
            learning_rate=0.012,
            warmup_steps=4883,  # 10 million images
            decay="inverse_sqrt",
            decay_after=35_000,
            clip_norm=0.0,
            post_hoc_ema=(0.05, 0.1),
            snapshot_every=4096,
            snapshot_dtype="float16",
        ),
        sampling=Sampling(sampler="heun", grid="karras", steps="32"),
    )
