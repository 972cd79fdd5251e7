"""Text to image in latents: the emoji at 32 x 32 by the latents, 8 x 8 x 4, of an autoencoder.

Command:   python main.py --workdir runs/emoji_autoencoder --config experiments/emoji_autoencoder.py
           python main.py encode --config experiments/emoji_latent.py --folder runs/emoji_latents
           python main.py --workdir runs/emoji_latent --config experiments/emoji_latent.py
               --config.data.source=latents --config.data.source.folder=runs/emoji_latents
Hardware:  a laptop's CPU; not yet measured here

Captions, glyphs and training are those of experiments/emoji_text.py, which is of pixels at 16 x 16.
Without the second command and the last two settings images are encoded in every step."""

from diffusion_jax.runs.config import Config, Data, Diffusion, Evaluation, Sampling, Training, use


def get_config() -> Config:
    return Config(
        data=Data(
            source=use("emoji", glyphs=128, templates=("plain", "background"), copies=8),
            shape=(32, 32, 3),
            num_classes=128,
        ),
        codec=use("autoencoder", run="runs/emoji_autoencoder", factor=4, latent=4, sigma_data=1.0),
        conditioning=use("words", dropout=0.1),
        model=use(
            "unet",
            channels=64,
            channel_mult=(1, 2),
            blocks=1,
            attention_resolutions=(4,),
            heads=2,
            context=128,
        ),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        training=Training(
            num_steps=2400,
            batch_size=32,
            learning_rate=1e-3,
            warmup_steps=100,
            decay="cosine",
            ema_decay=0.995,
            eval_every=500,
            eval_examples=256,
            sample_every=800,
            checkpoint_every=500,
            log_every=50,
        ),
        sampling=Sampling(
            sampler="dpmpp_2m",
            grid="logsnr",
            steps="20",
            guidance=1.0,
            num=64,
            prompts=(
                "a red heart",
                "a camel on blue",
                "a rocket on green",
                "a panda on yellow",
                "a key on purple",
                "a sunflower on red",
                "a grinning face on gray",
                "a sailboat on pink",
            ),
        ),
        evaluation=Evaluation(features="pixels", num=2000, batch_size=500, bits_per_dim=0),
    )
