"""Latents of a data set, encoded once; a run that trains on them, draws and edits."""

import json
import shutil

import frechet_by_hand
import numpy as np
import pytest
from latents import latent_experiment, moments_of, weights_file
from tensors import refusal
from tiny import arrays, curves, main_run, without_pictures

from diffusion_jax.data.latents import Latents, latents
from diffusion_jax.data.pipeline import training_batches
from diffusion_jax.data.sources import digits
from diffusion_jax.data.spec import Declared
from diffusion_jax.runs.autoencoders import open_autoencoder

DECLARED = Declared((8, 8, 1), 10)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, experiment): folder/kept holds the digits' latents, in float32."""
    folder = tmp_path_factory.mktemp("latents")
    experiment = latent_experiment(folder)
    main_run("encode", "--config", experiment, "--folder", folder / "kept", "--dtype", "float32")
    return folder, experiment


@pytest.fixture(scope="module")
def trained(made):
    """The workdir of a run on the kept latents."""
    folder, experiment = made
    on_latents = ["--config.data.source=latents", f"--config.data.source.folder={folder / 'kept'}"]
    with without_pictures():
        main_run("train", "--workdir", folder / "run", "--config", experiment, *on_latents)
    return folder / "run"


def test_files_hold_what_the_encoder_gives(made):
    folder, images = made[0], digits("test").images[digits("test").chosen]
    source = latents("test", DECLARED, str(folder / "kept"), verify=True)
    assert len(source) == 180 and source.num_classes == 10
    np.testing.assert_array_equal(source.labels, digits("test").labels)
    own = np.stack([source[i]["image"] for i in range(180)])
    expected = moments_of(folder / "autoencoder.safetensors", images)
    np.testing.assert_allclose(own, expected, atol=1e-4)
    mirrored = np.stack([source.mirrored(i) for i in range(180)])
    flipped = moments_of(folder / "autoencoder.safetensors", images[:, :, ::-1])
    np.testing.assert_allclose(mirrored, flipped, atol=1e-4)
    # the law of total variance, in NumPy
    z = expected.reshape(-1, 4).astype(np.float64)
    deviation = np.sqrt(z[:, :2].var(axis=0) + np.exp(z[:, 2:]).mean(axis=0))
    np.testing.assert_allclose(source.statistics[0], z[:, :2].mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(source.statistics[1], deviation, rtol=1e-3)


def test_half_of_a_batch_are_the_mirrored_images_latents(made):
    source = latents("test", DECLARED, str(made[0] / "kept"))
    batch = next(training_batches(source, 180, seed=0, flip="image", epochs=1))
    assert set(batch) == {"image", "label"}
    plain = {source[i]["image"].tobytes() for i in range(180)}
    others = {source.mirrored(i).tobytes() for i in range(180)}
    found = [image.tobytes() for image in batch["image"]]
    assert set(found) <= plain | others
    assert 60 < sum(one in others for one in found) < 120
    no_flip = next(training_batches(source, 180, seed=0, epochs=1))
    assert {image.tobytes() for image in no_flip["image"]} == plain


@pytest.mark.usefixtures("no_pictures")
def test_a_run_on_images_is_the_run_on_their_latents(made, trained):
    """The statistics differ in the seventh digit, the latents in the last bits."""
    folder, experiment = made
    main_run("train", "--workdir", folder / "images", "--config", experiment)
    stored = [json.loads((d / "config.json").read_text())["codec"]
              for d in (trained, folder / "images")]  # fmt: skip
    assert stored[0]["sha256"] == stored[1]["sha256"] != ""
    for name in ("mean", "deviation"):
        np.testing.assert_allclose(stored[0][name], stored[1][name], rtol=1e-4)
    losses = [[line["loss"] for line in curves(d) if "loss" in line]
              for d in (trained, folder / "images")]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_inpainting_keeps_pixels_and_interpolation_gives_images(trained):
    editing = ["--config.editing.num=4", "--config.sampling.sampler=ddim"]
    main_run("edit", "--workdir", trained, *editing)
    (path,) = trained.glob("edits/*inpaint*/edits.npz")
    found = arrays(path)
    kept = np.broadcast_to(found["mask"], found["results"].shape)
    assert found["mask"].shape == (8, 8, 1) and found["results"].dtype == np.uint8
    np.testing.assert_array_equal(found["results"][kept], found["originals"][kept])
    assert (found["inputs"][~kept] == 128).all()
    assert (found["originals"] == digits("test").images[digits("test").chosen][:4]).all()


def test_samples_are_images_and_likelihoods_are_refused(trained):
    main_run("sample", "--workdir", trained, "--config.sampling.num=4")
    (path,) = trained.glob("samples/*/samples.npz")
    assert arrays(path)["images"].shape == (4, 8, 8, 1)
    assert "8-bit values, which latents have none of" in refusal(main_run, "nll", "--workdir",
                                                                 trained)  # fmt: skip


def test_the_floor_of_fid_is_that_of_what_the_codec_gives_back(made, trained):
    few = ["--config.evaluation.num=40", "--config.evaluation.features=pixels"]
    few += [
        "--config.evaluation.bits_per_dim=0",
        "--config.evaluation.memorised=0",
        "--config.evaluation.replicates=0",
    ]
    main_run("evaluate", "--workdir", trained, *few)
    (path,) = trained.glob("evaluations/*/report-40.json")
    found = json.loads(path.read_text())["floor"]
    assert found["images"] == 40 and found["split"] == "train"
    every = digits("train").images[digits("train").chosen]
    chosen = every[np.linspace(0, len(every) - 1, 40).round().astype(int)]
    coder = open_autoencoder("", str(made[0] / "autoencoder.safetensors"))
    moments = coder.encode(coder.params, chosen / np.float32(127.5) - 1)
    back = np.asarray(coder.decode(coder.params, moments[..., :2]))
    back = np.clip(np.round((back + 1) * 127.5), 0, 255)
    expected = frechet_by_hand.gaussians(*map(frechet_by_hand.flat, (back, every)))
    np.testing.assert_allclose(found["fid"]["value"], expected, rtol=1e-3)


def test_what_does_not_belong_together_is_refused(made, trained, tmp_path):
    folder, experiment = made
    kept = folder / "kept"
    other = weights_file(tmp_path / "other.safetensors", seed=1)
    named = f"--config.codec.weights={other}"
    train = ["train", "--workdir", tmp_path / "new", "--config", experiment]
    on_latents = ["--config.data.source=latents", f"--config.data.source.folder={kept}"]
    assert "of another autoencoder" in refusal(main_run, *train, *on_latents, named)
    said = refusal(main_run, "sample", "--workdir", trained, named)
    assert "another one than this run's" in said
    said = refusal(main_run, *train, *on_latents, "--config.codec=pixels")
    assert "latents are read by config.codec=autoencoder, not by pixels" in said
    encode = ["encode", "--config", experiment, "--folder"]
    assert "differ in dtype" in refusal(main_run, *encode, kept)
    assert "other latents, which differ in autoencoder" in refusal(
        main_run, *encode, kept, "--dtype", "float32", named)  # fmt: skip
    assert "config.codec=autoencoder" in refusal(
        main_run, *encode, tmp_path / "no", "--config.codec=pixels")  # fmt: skip
    assert not (tmp_path / "new").exists() and not (tmp_path / "no").exists()
    assert "no latents of the split 'half', only test, train" in refusal(
        latents, "half", DECLARED, str(kept))  # fmt: skip
    assert "of images of (8, 8, 1), but config.data.shape is (16, 16, 1)" in refusal(
        latents, "test", Declared((16, 16, 1)), str(kept))  # fmt: skip


def test_damage_is_found(made, tmp_path):
    shutil.copytree(made[0] / "kept" / "test", tmp_path / "test")
    file = tmp_path / "test" / "image.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert isinstance(latents("test", DECLARED, str(tmp_path)), Latents)
    said = refusal(latents, "test", DECLARED, str(tmp_path), verify=True)
    assert "image.npy has another checksum" in said
    file.write_bytes(data[:-4])
    assert "bytes instead of" in refusal(latents, "test", DECLARED, str(tmp_path))
    (tmp_path / "test" / "mirrored.npy").unlink()
    file.write_bytes((made[0] / "kept" / "test" / "image.npy").read_bytes())
    assert "mirrored.npy is missing" in refusal(latents, "test", DECLARED, str(tmp_path))
