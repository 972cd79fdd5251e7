"""The commands `import` and `export-weights`: runs made of files of weights, files of runs."""

import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy
from tensors import assert_same, refusal
from tiny import main_run

from diffusion_jax.commands import train as loop
from diffusion_jax.commands.export_weights import export_weights
from diffusion_jax.commands.import_ import import_weights
from diffusion_jax.commands.sample import sample
from diffusion_jax.core.types import Kind
from diffusion_jax.data import pipeline, sources
from diffusion_jax.interop.dit_names import to_names
from diffusion_jax.interop.files import read_checkpoint
from diffusion_jax.interop.state_dicts import to_torch_names
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.unet import UNet
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, use
from diffusion_jax.runs.settings import load

TINY = UNet(
    out_channels=1,
    channels=8,
    channel_mult=(1,),
    blocks=1,
    attention_factors=(1,),
    heads=2,
    kinds=(("label", Kind("index", 10)),),
)


def random_params(model):
    """Parameters of a network, without a zero."""
    rng, cond = np.random.default_rng(0), {name: np.zeros(1, np.int32) for name, _ in model.kinds}
    x, t = np.zeros((1, 8, 8, model.out_channels)), np.zeros(1)
    init = lambda key: model.init(key, x, t, cond)["params"]
    shapes = jax.eval_shape(init, jax.random.key(0))
    draw = lambda a: (
        rng.standard_normal(a.shape, np.float32) / math.sqrt(math.prod(a.shape[:-1]) or 1)
    )
    return jax.tree.map(draw, shapes)


def random_weights(model):
    """A state dict of a network, without a zero."""
    return to_torch_names(random_params(model), model)


@pytest.fixture(scope="session")
def weights():
    """The state dict of a small network for the digits."""
    return random_weights(TINY)


@pytest.fixture
def tiny_file(weights, tmp_path):
    path = tmp_path / "tiny.safetensors"
    safetensors.numpy.save_file(weights, path)
    return path


def settings(**model):
    """What a file of weights does not tell; its channels, levels and classes here are wrong on
    purpose."""
    return Config(
        data=Data(source="digits", shape=(8, 8, 3), num_classes=0),
        model=use("unet", **({"heads": 2} | model)),
        diffusion=Diffusion(schedule=use("cosine", num_steps=20)),
        training=Training(
            num_steps=1, batch_size=4, warmup_steps=0, eval_every=0, sample_every=0, ema_decay=0.5
        ),
        sampling=Sampling(steps="2", num=2),
    )


@pytest.mark.parametrize("new_order", [False, True])
def test_import_and_export_are_exact(weights, tiny_file, tmp_path, new_order):
    run, copy = tmp_path / "run", tmp_path / "copy.safetensors"
    config = import_weights(tiny_file, settings(), run, new_order)
    assert load(run / "config.json") == config
    assert (config.data.shape, config.data.num_classes) == ((8, 8, 1), 10)
    assert (
        config.model.channels,
        config.model.channel_mult,
        config.model.attention_resolutions,
    ) == (8, (1,), (8,))
    assert export_weights(run, copy, new_attention_order=new_order) == copy
    # a file holds its tensors in an order of its own
    assert_same(dict(sorted(read_checkpoint(copy).items())), dict(sorted(weights.items())))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy.safetensors",
        "run",
        "tiny.safetensors",
    ]


@pytest.mark.parametrize("layout", ["dit", "diffusers"])
def test_a_dits_import_and_export_are_exact(tmp_path, layout):
    model = DiT(1, width=16, depth=1, heads=2, kinds=(("label", Kind("index", 10)),))
    path, run, copy = (tmp_path / name for name in ("w.safetensors", "run", "copy.safetensors"))
    weights = to_names(random_params(model), model, 8, 8, layout)
    safetensors.numpy.save_file(weights, path)
    config = settings()
    config.model = use("dit", heads=2)
    config = import_weights(path, config, run)
    assert (config.data.shape, config.data.num_classes) == ((8, 8, 1), 10)
    assert (config.model.width, config.model.depth, config.model.patch) == (16, 1, 2)
    assert export_weights(run, copy, layout=layout) == copy
    assert_same(dict(sorted(read_checkpoint(copy).items())), dict(sorted(weights.items())))
    message = "--layout is one of dit, diffusers, not 'jax'"
    assert refusal(export_weights, run, tmp_path / "c.safetensors", layout="jax") == message


def test_weights_of_latents_leave_the_images_shape(tmp_path):
    model = DiT(4, width=16, depth=1, heads=2, kinds=(("label", Kind("index", 10)),))
    weights = to_names(random_params(model), model, 8, 8, "dit")
    safetensors.numpy.save_file(weights, tmp_path / "w.safetensors")
    config = settings()
    config.model, config.data.shape = use("dit", heads=2), (16, 16, 3)
    statistics = {"mean": (0.0,) * 4, "deviation": (1.0,) * 4}
    config.codec = use("autoencoder", weights="none", factor=2, latent=4, **statistics)
    found = import_weights(tmp_path / "w.safetensors", config, tmp_path / "run")
    assert (found.data.shape, found.model.patch) == ((16, 16, 3), 2)
    config.codec.latent, config.codec.mean, config.codec.deviation = 3, (), ()
    message = "the weights are of 4 channels, but config.codec.latent=3"
    assert refusal(import_weights, tmp_path / "w.safetensors", config, tmp_path / "no") == message


def test_imported_run_is_sampled(tiny_file, tmp_path):
    config = import_weights(tiny_file, settings(), tmp_path / "run")
    drawn = np.load(sample(config, tmp_path / "run") / "samples.npz")
    assert drawn["images"].shape == (2, 8, 8, 1)
    assert len(np.unique(drawn["images"])) > 10


def test_imported_run_is_trained_on_and_exported(weights, tiny_file, tmp_path, monkeypatch):
    run = tmp_path / "run"
    config = import_weights(tiny_file, settings(), run)
    # the initialisation, which the restored parameters replace, would take 10 s to compile
    zeros = lambda key: jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(build(config).init_params, key)
    )
    monkeypatch.setattr(loop, "build", lambda config: build(config)._replace(init_params=zeros))
    began, state = loop.begin(config, run)
    assert int(state.step) == 0
    for params in (state.params, state.ema_params):
        assert_same(to_torch_names(params, TINY), weights)
    assert not any(np.any(a) for a in jax.tree.leaves(state.opt_state))
    # the randomness and the data are those of a new run
    assert np.array_equal(
        jax.random.key_data(began.key),
        jax.random.key_data(jax.random.split(jax.random.key(config.seed))[1]),
    )
    batches = pipeline.training_batches(sources.digits("train"), 4, config.seed)
    same = lambda placed, a: np.testing.assert_array_equal(np.reshape(placed, a.shape), a)
    jax.tree.map(same, began.batches.take(), next(batches))

    moved = state.replace(step=state.step + 1, params=jax.tree.map(lambda a: a + 1, state.params))
    loop.save(began, moved, wait=True)
    began.checkpoints.close()
    began.log.close()
    for ema, added in ((True, 0), (False, 1)):
        config.sampling.ema = ema
        exported = read_checkpoint(export_weights(run, tmp_path / f"{ema}.safetensors", config))
        for name, tensor in weights.items():
            np.testing.assert_array_equal(exported[name], tensor + np.float32(added))


def test_import_refuses_what_does_not_fit_and_leaves_no_trace(weights, tiny_file, tmp_path):
    run = tmp_path / "run"
    refuse = lambda config: refusal(import_weights, tiny_file, config, run)

    def shaped(*shape):
        config = settings()
        config.data = Data(shape=shape)
        return config

    assert "8 channels cannot be cut into 3 heads" in refuse(settings(heads=3))
    assert "8 channels has no heads of 12 channels" in refuse(settings(head_channels=12))
    assert "height, width and channels" in refuse(shaped())
    faulty = {name: a for name, a in weights.items() if name != "out.0.bias"}
    safetensors.numpy.save_file(faulty, tiny_file)
    assert refuse(settings()) == "the weights do not fit: missing: out.0.bias"
    assert not run.exists()

    two_levels = TINY.clone(out_channels=3, channel_mult=(1, 1), kinds=())
    safetensors.numpy.save_file(random_weights(two_levels), tiny_file)
    message = "images of 8 x 9 cannot be halved 1 times, once between two levels"
    assert message in refuse(shaped(8, 9, 3))
    assert not run.exists()

    safetensors.numpy.save_file(weights, tiny_file)
    run.mkdir()
    (run / "config.json").write_text(json.dumps({}))
    assert refuse(settings()) == f"{run} holds a run already; choose another --workdir"
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_export_refuses_what_it_would_overwrite_or_cannot_write(tiny_file, tmp_path):
    run = tmp_path / "run"
    config = import_weights(tiny_file, settings(), run)
    refuse = lambda path, *rest: refusal(export_weights, run, path, *rest)
    assert refuse(tiny_file) == f"{tiny_file} exists; choose another name"
    assert refuse(tmp_path / "w.pt").endswith("must end in .safetensors")
    assert "cannot be written" in refuse(tmp_path / "no folder" / "w.safetensors")
    config.model.heads = 1
    assert "model.heads: 2 -> 1" in refuse(tmp_path / "w.safetensors", config)
    assert "no config file" in refusal(
        export_weights, tmp_path / "nowhere", tmp_path / "w.safetensors"
    )
    assert not (tmp_path / "w.safetensors").exists()


def test_weights_go_out_and_come_back_bit_for_bit(workdir, tmp_path, capsys, no_pictures):
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    run = tmp_path / "run"
    main_run("export-weights", "--workdir", workdir, "--weights", out)
    assert capsys.readouterr().out == f"weights: {out}\n"
    config = workdir / "config.json"
    main_run("import", "--workdir", run, "--config", config, "--weights", out)
    assert "taken on trust: heads=1" in capsys.readouterr().out
    main_run("export-weights", "--workdir", run, "--weights", again)
    assert again.read_bytes() == out.read_bytes()
    main_run("train", "--workdir", run, "--config.training.num_steps=2")
    assert "trained to step 2" in (run / "log.txt").read_text()
