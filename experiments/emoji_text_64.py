"""Text to image at 64 x 64: all of OpenMoji's glyphs, in all templates of captions.

Command:   python main.py --workdir runs/emoji64 --config experiments/emoji_text_64.py
Hardware:  one NVIDIA GPU of Ampere or later; meant for about ten minutes of an H100, not measured
Result:    not measured; experiments/emoji_text.py is its twin for a CPU, with measured numbers
"""

from diffusion_jax.runs.config import Config, use
from experiments import emoji_text


def get_config() -> Config:
    config = emoji_text.get_config()
    templates = ("plain", "background", "place", "pair", "tone")
    config.data.source = use("emoji", templates=templates, copies=4)
    config.data.shape, config.data.num_classes = (64, 64, 3), 0
    config.conditioning = use("words", rows=32768, dropout=0.1)
    config.model = use(
        "unet",
        channels=96,
        channel_mult=(1, 2, 3, 4),
        blocks=2,
        attention_resolutions=(16, 8),
        head_channels=32,
        context=256,
        context_depth=2,
        dtype="bfloat16",
    )
    training = config.training
    training.num_steps, training.batch_size, training.learning_rate = 6000, 256, 5e-4
    training.warmup_steps, training.ema_decay, training.steps_per_call = 500, 0.999, 10
    training.eval_every, training.sample_every, training.checkpoint_every = 1000, 1000, 1000
    config.sampling.steps = "30"
    config.sampling.prompts += (
        "a small camel at the top left",
        "a camel beside a red heart",
        "a thumbs up with dark skin",
        "a large balloon at the bottom right",
    )
    return config
