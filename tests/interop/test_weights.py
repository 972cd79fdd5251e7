"""The weights of others: their numbers from their weights, and files and runs made of them."""

import functools
import json
import math
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.commands import train as loop
from diffusion_jax.commands.export_weights import export_weights
from diffusion_jax.commands.import_ import import_weights
from diffusion_jax.commands.sample import sample
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import pipeline, sources
from diffusion_jax.interop.files import read_checkpoint
from diffusion_jax.interop.state_dicts import from_torch_names, infer_model, to_torch_names
from diffusion_jax.models.unet import UNet
from diffusion_jax.runs.build import build
from diffusion_jax.runs.config import Config, Data, Diffusion, Sampling, Training, load, use

NAMES = ("plain", "learned_sigma", "class_cond", "adm")
ORDERS = [*((name, False) for name in NAMES), ("adm", True)]
TINY = UNet(
    out_channels=1,
    channels=8,
    channel_mult=(1,),
    blocks=1,
    attention_factors=(1,),
    heads=2,
    tables=(("label", 10),),
)


@pytest.fixture(scope="session")
def state_dict(reference):
    """name of a recorded U-Net -> its state dict, by the formula in tests/reference/README.md."""

    @functools.cache
    def make(name):
        recorded, tensors = reference("unet.json")[name], {}

        def add(tensor, shape):
            n = math.prod(shape)
            values = np.sin(0.37 * np.arange(n) + 1.3 * len(tensors) + recorded["seed"]) * 0.6
            tensors[tensor] = (
                (values / np.sqrt(max(1, n // shape[0]))).astype(np.float32).reshape(shape)
            )

        for layer, shape in recorded["layers"].items():
            add(f"{layer}.weight", shape)
            if layer != "label_emb":
                add(f"{layer}.bias", shape[:1])
        return tensors

    return lambda name: dict(make(name))


@pytest.fixture(scope="session")
def inferred(reference, state_dict):
    """name of a recorded U-Net -> (the Config read from its state dict, build's parts, shapes of
    the parameters)."""

    @functools.cache
    def read(name):
        options = reference("unet.json")[name]["config"]
        height, width = reference("unet.npz")[f"{name}/x"].shape[1:3]
        found, channels, classes = infer_model(state_dict(name), height)
        own = {"heads": options.get("num_heads", 1)}
        own["head_channels"] = options.get("num_head_channels", 0)
        config = Config(
            data=Data(shape=(height, width, channels), num_classes=classes),
            model=use("unet", **found, **own),
        )
        parts = build(config)
        return config, parts, jax.eval_shape(parts.init_params, jax.random.key(0))

    return read


@pytest.fixture(scope="session")
def tiny():
    """The state dict of a small network for the digits, random, without a zero."""
    rng, cond = np.random.default_rng(0), {"label": np.zeros(1, np.int32)}
    init = lambda key: TINY.init(key, np.zeros((1, 8, 8, 1)), np.zeros(1), cond)["params"]
    shapes = jax.eval_shape(init, jax.random.key(0))
    draw = lambda a: (
        rng.standard_normal(a.shape, np.float32) / math.sqrt(math.prod(a.shape[:-1]) or 1)
    )
    return to_torch_names(jax.tree.map(draw, shapes), TINY)


@pytest.fixture
def tiny_file(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    safetensors.numpy.save_file(tiny, path)
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


def shaped(shape):
    config = settings()
    config.data.shape = shape
    return config


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name in expected:
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], expected[name], err_msg=name)


def refusal(function, *args, **kwargs):
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("name", "new_order"), ORDERS)
def test_network_gives_the_peers_output(reference, state_dict, inferred, name, new_order):
    _, parts, like = inferred(name)
    params = from_torch_names(state_dict(name), like, parts.apply_fn.module, new_order)
    recorded = reference("unet.npz")
    output = {"adm": "adm/output_new" if new_order else "adm/output_legacy"}.get(
        name, f"{name}/output"
    )
    cond = {"label": recorded[f"{name}/y"]} if f"{name}/y" in recorded else {}
    run = compiled(parts.apply_fn)
    actual = run(params, recorded[f"{name}/x"], recorded[f"{name}/t"], cond)
    np.testing.assert_allclose(actual, recorded[output], atol=2e-4)


@functools.cache
def compiled(function):
    return jax.jit(function)


@pytest.mark.parametrize("name", NAMES)
def test_infer_model_finds_the_recorded_config(reference, inferred, name):
    recorded, config = reference("unet.json")[name]["config"], inferred(name)[0]
    model, height = config.model, config.data.shape[0]
    assert config.data.shape[2] == recorded["in_channels"]
    assert config.data.num_classes == recorded.get("num_classes", 0)
    assert model.learned_variance == (recorded["out_channels"] == 2 * recorded["in_channels"])
    assert model.channels == recorded["model_channels"]
    assert model.channel_mult == tuple(recorded["channel_mult"])
    assert model.blocks == recorded["num_res_blocks"]
    assert model.attention_resolutions == tuple(
        height // factor for factor in recorded["attention_resolutions"]
    )
    assert model.scale_shift == recorded.get("use_scale_shift_norm", False)
    assert model.resample_blocks == recorded.get("resblock_updown", False)


@pytest.mark.parametrize(("name", "new_order"), ORDERS)
def test_round_trip_is_exact(state_dict, inferred, name, new_order):
    _, parts, like = inferred(name)
    unet = parts.apply_fn.module
    params = from_torch_names(state_dict(name), like, unet, new_order)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    assert_same(to_torch_names(params, unet, new_order), state_dict(name))


@pytest.mark.parametrize("ones", [0, 2])
def test_attention_may_be_of_linear_layers_or_conv2d(state_dict, inferred, ones):
    _, parts, like = inferred("plain")
    unet = parts.apply_fn.module
    tensors = state_dict("plain")
    for name, tensor in tensors.items():
        if name.endswith(("qkv.weight", "proj_out.weight")):
            tensors[name] = tensor.reshape(tensor.shape[:2] + (1,) * ones)
    params = from_torch_names(tensors, like, unet)
    assert_same(to_torch_names(params, unet), state_dict("plain"))


def test_missing_unexpected_and_misshaped_tensors_are_named(state_dict, inferred):
    _, parts, like = inferred("plain")
    convert = functools.partial(from_torch_names, like=like, model=parts.apply_fn.module)

    tensors = state_dict("plain")
    del tensors["input_blocks.3.1.qkv.bias"]
    assert refusal(convert, tensors) == "the weights do not fit: missing: input_blocks.3.1.qkv.bias"

    tensors = state_dict("plain") | {"label_emb.weight": np.zeros((10, 128), np.float32)}
    assert refusal(convert, tensors) == "the weights do not fit: unexpected: label_emb.weight"

    tensors = state_dict("plain") | {"out.2.weight": np.zeros((3, 32, 1, 1), np.float32)}
    message = (
        "the weights do not fit: of another shape: out.2.weight [3, 32, 1, 1] for [3, 32, 3, 3]"
    )
    assert refusal(convert, tensors) == message

    # a transposed square matrix cannot be told; one of other sizes, or a vector for a matrix, can
    tensors = state_dict("plain") | {"time_embed.0.weight": np.zeros((32, 128), np.float32)}
    assert "time_embed.0.weight [32, 128] for [128, 32]" in refusal(convert, tensors)
    tensors = state_dict("plain") | {"time_embed.0.weight": np.zeros(128 * 32, np.float32)}
    assert "time_embed.0.weight [4096] for [128, 32]" in refusal(convert, tensors)

    tensors = {
        name: a for name, a in state_dict("plain").items() if not name.startswith("middle_block.1")
    }
    tensors |= {f"extra.{i}": np.zeros(1, np.float32) for i in range(4)}
    message = refusal(convert, tensors)
    assert (
        "missing: middle_block.1.norm.weight, middle_block.1.norm.bias, middle_block.1.qkv.weight and 3 more"
        in message
    )
    assert "unexpected: extra.0, extra.1, extra.2 and 1 more" in message


def test_weights_of_other_networks_are_refused(state_dict):
    plain = state_dict("plain")
    infer = functools.partial(infer_model, height=16)
    assert refusal(infer, {"conv1.weight": np.zeros((8, 3, 3, 3))}).endswith(
        "no time_embed.0.weight"
    )
    assert refusal(infer, plain | {"time_embed.0.weight": np.zeros(4)}).endswith(
        "no time_embed.0.weight"
    )
    pooled = {name: a for name, a in plain.items() if ".op." not in name and ".2.conv." not in name}
    assert "3 input and 4 output blocks on 1 levels" in refusal(infer, pooled)
    # ADM's 512 x 512 network has levels of half the embedding's channels
    assert "begun with 16" in refusal(
        infer, plain | {"input_blocks.0.0.weight": np.zeros((16, 3, 3, 3))}
    )
    assert "5 output channels for 3" in refusal(
        infer, plain | {"out.2.weight": np.zeros((5, 32, 3, 3))}
    )
    assert refusal(infer, plain, height=9).startswith("images of height 9 cannot be halved 1 times")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_safetensors_of_every_precision_become_float32(tmp_path, dtype):
    path, values = (
        tmp_path / "w.safetensors",
        np.array([[0.5, -3.0], [1.25, 0.0]]),
    )  # exact in all of them
    safetensors.numpy.save_file({"a": values.astype(dtype)}, path)
    assert_same(read_checkpoint(path), {"a": values})


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_pytorch_files_become_float32(tmp_path, suffix, dtype):
    torch = pytest.importorskip("torch")
    path, values = tmp_path / f"w{suffix}", np.array([[0.5, -3.0], [1.25, 0.0]])
    torch.save({"a": torch.nn.Parameter(torch.tensor(values, dtype=getattr(torch, dtype)))}, path)
    assert_same(read_checkpoint(path), {"a": values})


@pytest.mark.parametrize("content", [{"step": 3, "model": {}}, {0: [1.0]}, [], 5])
def test_pytorch_file_that_is_no_state_dict(tmp_path, content):
    torch = pytest.importorskip("torch")
    path = tmp_path / "w.pt"
    torch.save(content, path)
    assert (
        refusal(read_checkpoint, path)
        == f"{path} holds no plain state dict, {{name: tensor}}"
    )


def test_pytorch_file_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch")

    class Attack:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    torch.save({"a": Attack()}, tmp_path / "w.pt")
    assert "cannot be read" in refusal(read_checkpoint, tmp_path / "w.pt")
    assert not (tmp_path / "written").exists()


def test_pytorch_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # its import raises ImportError
    path = tmp_path / "w.pt"
    path.write_bytes(b"anything")
    assert refusal(read_checkpoint, path).endswith('pip install "diffusion_jax[torch]"')


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\3\4garbage", b"\x10" + bytes(7) + b"{}"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_corrupt_file(tmp_path, suffix, content):
    if suffix == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert refusal(read_checkpoint, path).startswith(f"{path} cannot be read: ")


def test_truncated_file(tiny_file):
    tiny_file.write_bytes(tiny_file.read_bytes()[:-4])
    assert "cannot be read: " in refusal(read_checkpoint, tiny_file)


def test_file_that_is_not_there_or_of_another_kind(tmp_path):
    for path in (tmp_path / "w.pt", tmp_path / "w.safetensors"):
        assert refusal(read_checkpoint, path) == f"no file {path}"
    message = f"{tmp_path / 'w.ckpt'} is no file of weights; known: .safetensors, .pt, .pth"
    assert refusal(read_checkpoint, tmp_path / "w.ckpt") == message


@pytest.mark.parametrize("new_order", [False, True])
def test_import_and_export_are_exact(tiny, tiny_file, tmp_path, new_order):
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
    assert_same(dict(sorted(read_checkpoint(copy).items())), dict(sorted(tiny.items())))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "copy.safetensors",
        "run",
        "tiny.safetensors",
    ]


def test_imported_run_is_sampled(tiny_file, tmp_path):
    config = import_weights(tiny_file, settings(), tmp_path / "run")
    drawn = np.load(sample(config, tmp_path / "run") / "samples.npz")
    assert drawn["images"].shape == (2, 8, 8, 1)
    assert len(np.unique(drawn["images"])) > 10


def test_imported_run_is_trained_on_and_exported(tiny, tiny_file, tmp_path, monkeypatch):
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
        assert_same(to_torch_names(params, began.parts.apply_fn.module), tiny)
    assert not any(np.any(a) for a in jax.tree.leaves(state.opt_state))
    # the randomness and the data are those of a new run
    assert np.array_equal(
        jax.random.key_data(began.key),
        jax.random.key_data(jax.random.split(jax.random.key(config.seed))[1]),
    )
    batches = pipeline.training_batches(sources.digits("train"), 4, config.seed, flip=False)
    jax.tree.map(np.testing.assert_array_equal, next(began.batches), next(batches))

    moved = state.replace(step=state.step + 1, params=jax.tree.map(lambda a: a + 1, state.params))
    loop.save(began, moved, wait=True)
    began.checkpoints.close()
    began.log.close()
    for ema, added in ((True, 0), (False, 1)):
        config.sampling.ema = ema
        exported = read_checkpoint(
            export_weights(run, tmp_path / f"{ema}.safetensors", config)
        )
        for name, tensor in tiny.items():
            np.testing.assert_array_equal(exported[name], tensor + np.float32(added))


def test_import_refuses_what_does_not_fit_and_leaves_no_trace(
    state_dict, tiny, tiny_file, tmp_path
):
    run = tmp_path / "run"
    refuse = lambda config: refusal(import_weights, tiny_file, config, run)
    assert "8 channels cannot be cut into 3 heads" in refuse(settings(heads=3))
    assert "8 channels has no heads of 12 channels" in refuse(settings(head_channels=12))
    assert "height, width and channels" in refuse(shaped(()))
    faulty = {name: a for name, a in tiny.items() if name != "out.0.bias"}
    safetensors.numpy.save_file(faulty, tiny_file)
    assert refuse(settings()) == "the weights do not fit: missing: out.0.bias"
    assert not run.exists()

    safetensors.numpy.save_file(state_dict("plain"), tiny_file)
    message = "images of 8 x 9 cannot be halved 1 times, once between two levels"
    assert refuse(shaped((8, 9, 3))) == message
    assert not run.exists()

    safetensors.numpy.save_file(tiny, tiny_file)
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
