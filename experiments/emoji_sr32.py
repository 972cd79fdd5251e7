"""Super-resolution of the emoji from 16 x 16 to 32 x 32, told the small picture and the words.

Command:   python main.py --workdir runs/emoji --config experiments/emoji_text.py
           python main.py --workdir runs/emoji_sr32 --config experiments/emoji_sr32.py
           python main.py sample --workdir runs/emoji,runs/emoji_sr32 --prompt "a camel on blue"
Hardware:  a laptop's CPU, or any GPU
Result:    not measured; experiments/digits_sr8.py is its small twin, with measured numbers
"""

from diffusion_jax.runs.config import Config, use
from experiments import emoji_text


def get_config() -> Config:
    config = emoji_text.get_config()
    config.data.shape = (32, 32, 3)
    config.conditioning = [use("words", dropout=0.1), use("low", factor=2)]
    config.model.attention_resolutions = (8,)
    config.training.num_steps, config.training.batch_size = 1200, 32
    config.sampling.guidance = 0.0  # the small picture says what to draw
    config.sampling.prompts = ()  # of the held-out examples, as the small pictures are
    return config
