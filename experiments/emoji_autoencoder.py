"""Latent diffusion's autoencoder of the emoji: 32 x 32 pixels to 8 x 8 x 4 numbers, f = 4, with a
KL term, L1, L2 and, for the last third, a small critic of patches.

Command:   python main.py --workdir runs/emoji_autoencoder --config experiments/emoji_autoencoder.py
Hardware:  two cores, 20 minutes: a step takes 0.27 s of one core's time
RESULT
At 64:     --config.data.shape=64,64,3 --config.model.channels=64 --config.model.blocks=2
           --config.model.critic=64 --config.training.batch_size=64, on a GPU
Codes:     --config.model.regularizer=vq --config.model.codebook=512, or
           --config.model.regularizer=fsq
"""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(
            source=use("emoji", glyphs=128, templates=("plain", "background"), copies=8),
            shape=(32, 32, 3),
            num_classes=128,
        ),
        conditioning=(),
        model=use(
            "autoencoder",
            latent=4,
            channels=16,
            channel_mult=(1, 2, 4),
            blocks=1,
            critic=16,
            critic_layers=2,
        ),
        diffusion=Diffusion(
            loss=use("autoencoding", critic_start=4000, critic_weight=0.1),
        ),
        training=Training(
            num_steps=6000,
            batch_size=16,
            learning_rate=1e-3,
            warmup_steps=100,
            ema_decay=0.998,
            eval_every=500,
            eval_examples=256,
            sample_every=500,
            checkpoint_every=500,
            log_every=50,
        ),
        sampling=Sampling(num=64),
        evaluation=Evaluation(features="pixels", num=1000, batch_size=100, bits_per_dim=0),
    )
