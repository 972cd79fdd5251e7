"""Latent diffusion's autoencoder of the emoji: 32 x 32 pixels to 8 x 8 x 4 numbers, f = 4, with a
KL term, L1 and L2.

Command:   python main.py --workdir runs/emoji_autoencoder --config experiments/emoji_autoencoder.py
Hardware:  a laptop's CPU; 27 minutes of one core's time, of two cores 20.5 by the 7.3 steps a
           second of a quiet start
Result:    PSNR of 1,000 held-out images 26.03 dB (256 principal components 21.04, bicubic 17.42;
           benchmarks/autoencoder.py)
At 64:     --config.data.shape=64,64,3 --config.model.channels=64 --config.model.blocks=2
           --config.model.critic=64 --config.training.batch_size=64, on a GPU
Critic:    --config.model.critic=16 --config.diffusion.loss.critic_start=6000
           --config.diffusion.loss.critic_weight=0.1, for the last third
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
            critic_layers=2,
        ),
        diffusion=Diffusion(
            loss=use("autoencoding", l2_weight=3.0, critic_weight=0.0),
        ),
        training=Training(
            num_steps=9000,
            batch_size=16,
            learning_rate=3e-3,
            warmup_steps=100,
            decay="cosine",
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
