"""Prompts: what they say, and that what is drawn is the sum that the paper writes down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_line import INDEX, PARAMS, expected
from tiny import mlp_config

from diffusion_jax.conditioning.words import rows_of
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Prediction
from diffusion_jax.denoisers import make_denoiser
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import use
from diffusion_jax.runs.draw import captions, make_generate, prompt_notes
from diffusion_jax.runs.folders import sample_labels
from diffusion_jax.runs.prompts import parse, read


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("a red heart", [("a red heart", 1.0)]),
        (" camel AND on blue :0.5 ", [("camel", 1.0), ("on blue", 0.5)]),
        ("at 12:30", [("at 12:30", 1.0)]),
        ("SAND AND SEA :-0.25", [("SAND", 1.0), ("SEA", -0.25)]),
        ("b :.5 AND c :1e-1", [("b", 0.5), ("c", 0.1)]),
        ("", [("", 1.0)]),
    ],
)
def test_a_prompt_is_texts_with_weights(prompt, parts):
    assert parse(prompt) == tuple(parts)


def test_weights_that_sum_to_nothing_are_refused():
    with pytest.raises(UserError, match="must sum to more than 0"):
        parse("a AND b :-1")


def test_a_file_holds_a_prompt_a_line(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red heart\n\n camel on blue \n", encoding="utf-8")
    assert read(str(file)) == ("a red heart", "camel on blue")
    file.write_text("\n")
    with pytest.raises(UserError, match="has no prompt"):
        read(str(file))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read(str(tmp_path / "none.txt"))


def apply_fn(params, x, t, cond=None, dropout_key=None):
    """A line that sees the sum of the words' rows, and 0 of no words."""
    rows, keep = cond["text"]
    said = jnp.where(keep > 0, jnp.sin(rows.sum(axis=2).astype(jnp.float32)), 0.0).sum(axis=1)
    wide = (slice(None), None, None, None)
    return params["a"] * jnp.sin(3 * x + said[wide] + 0.1 * t[wide])


def run_of(**sampling):
    config = mlp_config()
    config.model = use(
        "unet", channels=8, channel_mult=(1,), blocks=1, attention_resolutions=(), context=4,
        context_depth=0,
    )  # fmt: skip
    config.data.source = use("digits", captions=True)
    config.conditioning = use("words", length=3, rows=50, dropout=0.1)
    config.diffusion.prediction = "v"
    for name, value in ({"sampler": "ddim"} | sampling).items():
        setattr(config.sampling, name, value)
    return config, build(config)._replace(apply_fn=apply_fn)


def by_hand(parts, terms):
    """The denoiser that sums up weight times the prediction for a text of each of INDEX."""

    def denoiser(x, level):
        x0 = eps = 0.0
        for weights, texts in terms:
            rows = np.stack([rows_of(text, 3, 50) for text in texts])
            keep = (rows > 0).any(axis=2).astype(np.float32)
            told = {"text": (rows, keep)}
            one = make_denoiser(apply_fn, PARAMS, parts.parameterization, told)(x, level)
            wide = np.reshape(np.asarray(weights, np.float32), (-1, 1, 1, 1))
            x0, eps = x0 + wide * one.x0, eps + wide * one.eps
        return Prediction(x0, eps)

    return denoiser


COMMON = {"clip_x0": False, "num": 4}


def test_samples_are_asked_for_prompts_in_turn():
    config, parts = run_of(prompts=("three inverted", "four"), **COMMON)
    drawn = make_generate(config, parts)(PARAMS, INDEX)
    texts = [("three inverted", "four")[i % 2] for i in INDEX]
    np.testing.assert_allclose(
        drawn, expected(config, parts, by_hand(parts, [(1.0, texts)])), atol=1e-5
    )
    assert captions(config, parts, 3) == ["three inverted", "four", "three inverted"]
    held_out, own = run_of(**COMMON)
    assert captions(held_out, own, 181)[180].endswith(" inverted")


def test_guidance_leads_away_from_the_negative_prompt():
    config, parts = run_of(prompts=("three",), negative="inverted", guidance=1.5, **COMMON)
    drawn = make_generate(config, parts)(PARAMS, INDEX)
    denoiser = by_hand(parts, [(2.5, ["three"] * 4), (-1.5, ["inverted"] * 4)])
    np.testing.assert_allclose(drawn, expected(config, parts, denoiser), atol=1e-4)
    plain = make_generate(*run_of(prompts=("three",), guidance=1.5, **COMMON))(PARAMS, INDEX)
    denoiser = by_hand(parts, [(2.5, ["three"] * 4), (-1.5, [""] * 4)])
    np.testing.assert_allclose(plain, expected(config, parts, denoiser), atol=1e-4)


@pytest.mark.parametrize("w", [0.0, 1.0])
def test_weighted_texts_are_composed(w):
    """eps = eps_u + (1 + w) sum_i w_i (eps_i - eps_u), Liu et al. 2022, eq. 11."""
    prompts = ("three AND inverted :0.5", "four")
    config, parts = run_of(prompts=prompts, guidance=w, **COMMON)
    drawn = make_generate(config, parts)(PARAMS, INDEX)
    composed = INDEX % 2 == 0
    first = ["three" if one else "four" for one in composed]
    share = np.where(composed, 0.5, 0.0)
    terms = [
        ((1 + w) * np.ones(4), first),
        ((1 + w) * share, ["inverted"] * 4),
        (1 - (1 + w) * (1 + share), [""] * 4),
    ]
    np.testing.assert_allclose(drawn, expected(config, parts, by_hand(parts, terms)), atol=1e-4)


def test_a_prompt_that_is_cut_is_said():
    config, parts = run_of(prompts=("a three that is inverted", "four"))
    (note,) = prompt_notes(config, parts)
    assert note == "1 of 2 texts have more than 3 words, of which the first are taken"


def test_prompts_need_a_text_and_a_negative_one_needs_guidance():
    config = mlp_config()
    config.sampling.prompts = ("three",)
    with pytest.raises(UserError, match="a prompt needs a run that is told a text"):
        make_generate(config, build(config))
    with pytest.raises(UserError, match="sampling.negative needs guidance"):
        run_of(negative="inverted")
    with pytest.raises(UserError, match="sampling.negative needs a prompt"):
        run_of(negative="inverted", guidance=1.0)
    with pytest.raises(UserError, match="must be a text in UTF-8"):
        prompt_notes(*run_of(prompts=("\udcff",)))


def test_weighted_texts_need_a_text_that_was_dropped():
    config = run_of(prompts=("three AND inverted",))[0]
    config.conditioning.words.dropout = 0.0
    with pytest.raises(UserError, match="need a run whose text was dropped"):
        make_generate(config, build(config))
    config.sampling.negative, config.sampling.guidance = "four", 1.0
    config.conditioning = use("words", dropout=0.1)
    assert make_generate(config, build(config))


def test_autoguidance_takes_one_text():
    guide = use("autoguidance", weak="weaker")
    config, parts = run_of(prompts=("three AND four",), guidance=1.0, guide=guide)
    with pytest.raises(UserError, match="need config.sampling.guide=classifier_free"):
        make_generate(config, parts, weak=PARAMS)(PARAMS, INDEX)


def test_an_image_that_is_told_is_not_mirrored_alone():
    config = run_of()[0]
    config.conditioning, config.data.flip = use("image", name="image"), True
    with pytest.raises(UserError, match="an image that is told is neither mirrored"):
        build(config)


def test_labels_of_samples_by_prompts_are_those_that_they_are_told():
    config = run_of(prompts=("three", "four"), num=6)[0]
    config.conditioning = ("label", use("words", length=3, rows=50, dropout=0.1))
    np.testing.assert_array_equal(sample_labels(config, build(config), 4), [0, 1, 2, 3])


def test_the_words_of_a_run_reach_its_loss():
    config, parts = run_of()
    assert parts.conditioner.reads == ("words",)
    shapes = jax.tree.map(lambda a: a.shape, parts.conditioner.example(2))
    assert shapes == {"text": ((2, 3, 24), (2, 3))}
