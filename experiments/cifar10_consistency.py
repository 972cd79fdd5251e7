"""Consistency training on CIFAR-10 from scratch, unconditionally, as iCT sets it (Song & Dhariwal
2024).

Command:   python main.py --workdir runs/cifar10_ict --config experiments/cifar10_consistency.py
Hardware:  a GPU; not yet measured here
Papers:    FID of one step, not our numbers: iCT 2.83 (Song & Dhariwal 2024), CD 3.55 with LPIPS
           (Song et al. 2023), ECT 3.60 (Geng et al. 2024), sCT 2.85 (Lu & Song 2024)

Of iCT's paper: batch 1024, 400,000 steps, 10 intervals doubled to 1280, pseudo-Huber's 0.00054,
log-normal times of mean -1.1 and deviation 2.0, learning rate 1e-4, dropout 0.3, the average's
decay 0.99993. It trains NCSN++ by RAdam, this the U-Net of Improved DDPM's CIFAR-10 by Adam with a
warm-up.

The others start from a diffusion run, named by training.init, of the same schedule, network and
prediction. ECT: --config.diffusion.loss=easy_consistency. CD: consistency_distillation, with
--config.diffusion.timesteps=karras; its paper measures by LPIPS, which is no metric here. sCT:
continuous_consistency with .path=data and .sigma_data=0.5, and --config.diffusion.timesteps.mean=-1
and .std=1.4. Two steps, the second at the papers' sigma of 0.821: --config.sampling.grid=explicit
--config.sampling.steps=80,0.821"""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(
            source=use("tfds", name="cifar10:3.0.2"), shape=(32, 32, 3), num_classes=0, flip=True
        ),
        conditioning=(),
        model=use(
            "unet",
            channels=128,
            channel_mult=(1, 2, 2, 2),
            blocks=3,
            attention_resolutions=(16, 8),
            dropout=0.3,
        ),
        diffusion=Diffusion(
            schedule="edm",
            prediction="edm",
            loss=use("consistency_training", steps=400_000),
            timesteps=use("lognormal", mean=-1.1, std=2.0),
        ),
        training=Training(
            num_steps=400_000,
            batch_size=1024,
            learning_rate=1e-4,
            warmup_steps=1000,
            ema_decay=0.99993,
            eval_every=10_000,
            sample_every=10_000,
            checkpoint_every=10_000,
        ),
        sampling=Sampling(sampler="consistency", grid="trailing", steps="1", num=100),
        evaluation=Evaluation(bits_per_dim=0),
    )
