"""Text to image in latents: the emoji at 32 x 32 by the latents, 8 x 8 x 4, of an autoencoder.

Command:   python main.py --workdir runs/emoji_autoencoder --config experiments/emoji_autoencoder.py
           python main.py encode --config experiments/emoji_latent.py --folder runs/emoji_latents
           python main.py --workdir runs/emoji_latent --config experiments/emoji_latent.py
               --config.data.source=latents --config.data.source.folder=runs/emoji_latents
Hardware:  a laptop's CPU; 16 minutes of one core, other work beside, after the autoencoder's 20
Result:    of 200 trained captions all show the glyph and the background asked for; of 100 held-out
           combinations 99 % and 99 % (benchmarks/emoji_text.py), by an autoencoder of 24.91 dB

Captions, glyphs and training are those of experiments/emoji_text.py, which is of pixels at 16 x 16.
Without the second command and the last two settings images are encoded in every step."""

from diffusion_jax.runs.config import Config, use
from experiments import emoji_text


def get_config() -> Config:
    config = emoji_text.get_config()
    config.data.shape = (32, 32, 3)
    config.codec = use(
        "autoencoder", run="runs/emoji_autoencoder", factor=4, latent=4, sigma_data=1.0
    )
    config.model.channels, config.model.channel_mult = 64, (1, 2)
    config.evaluation.bits_per_dim = 0
    return config
