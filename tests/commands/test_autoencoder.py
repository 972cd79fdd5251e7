"""A run that trains an autoencoder, from its first step to reconstructions and refusals."""

import json

import flax.linen as nn
import numpy as np
import pytest
import tiny
from tiny import main_run

from diffusion_jax.commands.plan import make_plan
from diffusion_jax.commands.train import train
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.latents import Latents
from diffusion_jax.core.quantization import nearest, straight_through
from diffusion_jax.core.types import Kinds, Shape
from diffusion_jax.data.sources import SOURCES
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.shuffles import shuffled
from diffusion_jax.runs.build import build, declared
from diffusion_jax.runs.config import use
from diffusion_jax.runs.settings import override

NUM = "--config.evaluation.num=40"


class Linear(nn.Module):
    """Two latents a pixel of half the size, one convolution each way, and a critic of one."""

    latents = Latents("vq", 2, codes=8, critic=True)

    def setup(self):
        self.encoder, self.decoder = nn.Conv(2, (2, 2), 2), nn.Conv(4, (3, 3))
        self.codebook = self.param("codebook", nn.initializers.normal(), (8, 2))
        self.critic = nn.Conv(1, (3, 3))

    def encode(self, x):
        return self.encoder(x)

    def decode(self, z, last=False):
        z = straight_through(z, self.codebook[nearest(z, self.codebook)])
        y = shuffled(self.decoder(z))
        return (y, y) if last else y

    def judge(self, x):
        return self.critic(x)

    def __call__(self, x, t=None, cond=None, *, train=False):
        self.judge(x)
        return self.decode(self.encode(x))


def linear(shape: Shape, kinds: Kinds) -> Linear:
    """A network whose step compiles in a moment."""
    return Linear()


@pytest.fixture(scope="module", autouse=True)
def registered():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "linear", linear)
        yield


def config(**training):
    """Of the digits: a codebook of averages, and a critic from the third step on."""
    made = tiny.tiny_config(eval_every=0, **training)
    made.conditioning, made.model = (), "linear"
    made.diffusion.loss = use("autoencoding", critic_start=2, decay=0.9, revive=0.5)
    made.evaluation.bits_per_dim = 0
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(config, workdir) of eight steps without a stop."""
    workdir = tmp_path_factory.mktemp("autoencoder") / "whole"
    train(config(), workdir)
    return config(), workdir


def test_four_and_four_steps_are_eight_bit_for_bit(whole, tmp_path):
    train(config(num_steps=4), tmp_path / "parts")
    train(config(), tmp_path / "parts")
    tiny.assert_same_run(whole, tmp_path / "parts")


def test_what_is_logged_and_what_is_trained(whole):
    last = tiny.curves(whole[1])[-1]
    names = {"l1", "l2", "perplexity", "usage", "critic", "real", "fake", "adaptive"}
    assert names <= last.keys() and not {"z", "codes", "loss_q0"} & last.keys()
    state, _ = tiny.final_state(*whole)
    assert {"encoder", "decoder", "codebook", "critic"} <= state.params.keys()
    assert set(state.opt_state.inner_states) == {"critic", "network"}


def test_samples_are_reconstructions_of_held_out_images(whole):
    main_run("sample", "--workdir", whole[1], "--config.sampling.num=6")
    (file,) = (whole[1] / "samples").glob("*/samples.npz")
    drawn = tiny.arrays(file)["images"]
    parts, (state, _) = build(whole[0]), tiny.final_state(*whole)
    source = SOURCES["digits"]("test", declared(whole[0]))
    x = np.stack([source[i]["image"] for i in range(6)])
    x0 = parts.codec.encode((), None, x)
    back = parts.apply_fn(state.ema_params, x0, None)
    expected = np.clip(np.round((np.asarray(back) + 1) * 127.5), 0, 255)
    assert drawn.shape == x.shape and np.abs(drawn - expected).max() <= 1


def test_evaluate_scores_reconstructions(whole, capsys):
    tiny.evaluate_run(whole[1])
    assert "FID" in capsys.readouterr().out
    (report,) = (whole[1] / "evaluations").glob("*/report-40.json")
    assert json.loads(report.read_text())["fid"]["value"] > 0
    with pytest.raises(UserError, match="held-out images to be reconstructed"):
        tiny.evaluate_run(whole[1], num=100_000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nll",), "which has no likelihood"),
        (("edit",), "edits are of a diffusion model; this run's is an autoencoder"),
        (("sample", "--config.sampling.guidance=1"), "config.sampling.guidance is of a diffusion"),
        (("sample", "--config.sampling.gif=true"), "config.sampling.gif is of a diffusion model"),
        (("sample", "--config.sampling.half_until=0"), "config.sampling.half_until is of a diff"),
        (("sample", "--early=2"), "--deadline and --early are of a diffusion model"),
        (("evaluate", "--config.evaluation.bits_per_dim=8", NUM), "has no likelihood"),
    ],
)
def test_what_needs_a_diffusion_model_is_refused(whole, words, message):
    with pytest.raises(UserError, match=message):
        main_run(words[0], "--workdir", whole[1], *words[1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mlp"}, "trains an autoencoder, as config.model=autoencoder, not mlp"),
        ({"diffusion.loss": "denoising"}, "is no denoiser: it is trained by"),
        ({"conditioning": "label"}, "an autoencoder is told nothing, not label"),
        ({"diffusion.weighting": "min_snr"}, "not of autoencoding"),
        ({"diffusion.loss.perceptual_file": "nowhere.pt"}, "images of 3 channels"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    made = config()
    override(made, changes)
    with pytest.raises(UserError, match=message):
        build(made)


def test_a_plan_counts_the_critics_parameters_and_moments_too():
    plan = make_plan(config())
    # of encoder, decoder, codebook and critic
    count = (2 * 2 * 2 + 2) + (9 * 2 * 4 + 4) + 8 * 2 + (9 + 1)
    assert plan.parameters == count
    assert plan.state["optimizer"] == pytest.approx(8 * count, abs=64)
