"""DDPM on CIFAR-10 (Ho et al. 2020): the linear schedule, fixed variance, L_simple.

Command:   python main.py --workdir runs/linear --config experiments/linear.py
Hardware:  the paper's: 8 TPU v3 cores, 10.6 hours. On one H100 expect days rather than hours;
           not yet measured here.
Paper:     FID 3.17 and Inception Score 9.46, of 50,000 samples by 1,000 ancestral steps; bits/dim
           at most 3.75 (table 1 of the paper, not our numbers)

The setting is that of the paper's appendix B: 35.7 M parameters, T = 1000, dropout 0.1, learning
rate 2e-4, batch 128, EMA 0.9999, 800,000 steps, horizontal flips; from the authors' code, 5,000
steps of warm-up and gradient norms clipped at 1."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(source=use("tfds", name="cifar10"), shape=(32, 32, 3), num_classes=0, flip=True),
        model=use("unet", attention_resolutions=(16,), scale_shift=False, dropout=0.1),
        diffusion=Diffusion(schedule="linear", prediction="eps", variance="fixed_large"),
        training=Training(
            num_steps=800_000,
            learning_rate=2e-4,
            warmup_steps=5000,
            eval_every=10_000,
            sample_every=10_000,
            checkpoint_every=10_000,
        ),
        sampling=Sampling(sampler="ancestral", steps="1000", num=64),
    )
