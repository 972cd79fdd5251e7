"""What surrounds a command: no home folder, no card, an ASCII terminal, double precision, words."""

import contextlib
import io
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ROOT, command, environment, experiment_file, tiny_config

import main
from diffusion_jax.core import caches, noise
from diffusion_jax.core.errors import UserError
from diffusion_jax.runs import start
from diffusion_jax.runs.build import batch_spec, build
from diffusion_jax.training.step import make_train_step


@pytest.fixture
def homeless(monkeypatch):
    """As in a container: no HOME, and a user id that no file knows."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(RuntimeError):
        pathlib.Path.home()


def test_a_cache_is_kept_in_the_home_folder_or_where_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert caches.lasting() == tmp_path / "home" / ".cache" / "diffusion_jax"
    assert caches.cache_folder("a", "b") == tmp_path / "home/.cache/diffusion_jax/a/b"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "named"))
    assert caches.cache_folder() == tmp_path / "named" / "diffusion_jax"


def test_without_a_home_folder_a_temporary_one_takes_its_place(homeless):
    assert caches.lasting() is None
    folder = caches.cache_folder("data")
    assert folder.parent.is_dir()
    assert folder == caches.cache_folder("data")  # of this process, all the time


def test_a_home_folder_that_cannot_hold_a_cache_is_none(monkeypatch, tmp_path):
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert caches.lasting() is None


@contextlib.contextmanager
def jax_settings(**values):
    before = {name: jax.config.values[name] for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_without_a_home_folder_nothing_compiled_is_kept_and_one_note_says_so(
    homeless, monkeypatch, capsys
):
    monkeypatch.setenv("MPLCONFIGDIR", "kept")  # and given back at the end
    monkeypatch.delenv("MPLCONFIGDIR")
    with jax_settings(jax_compilation_cache_dir=None):
        start.keep_compiled_programs()
        assert jax.config.values["jax_compilation_cache_dir"] is None
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("note: no home folder to keep compiled programs in")
    assert err.count("\n") == 1
    assert pathlib.Path(os.environ["MPLCONFIGDIR"]).parent.is_dir()


def test_with_one_compiled_programs_are_kept_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with jax_settings(jax_compilation_cache_dir=None):
        start.keep_compiled_programs()
        kept = jax.config.values["jax_compilation_cache_dir"]
    assert kept == str(tmp_path / "diffusion_jax")
    with jax_settings(jax_compilation_cache_dir="/chosen"):
        start.keep_compiled_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == "/chosen"
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
def test_the_program_runs_for_a_user_that_the_system_does_not_know():
    bare = {n: v for n, v in os.environ.items() if n not in ("HOME", "XDG_CACHE_HOME")}

    def as_nobody(*words):
        return subprocess.run(
            words, env=bare, capture_output=True, text=True, timeout=100, user=54321, cwd="/"
        )

    try:
        alone = as_nobody(sys.executable, "-c", "import pathlib; pathlib.Path.home()")
    except PermissionError:
        pytest.skip("this Python is its owner's alone")
    assert "Could not determine home directory" in alone.stderr
    done = as_nobody(*command("list"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "cosine" in done.stdout


@pytest.mark.parametrize("error", [RuntimeError("Unable to\n initialize it"), AssertionError()])
def test_a_missing_platform_is_one_line(monkeypatch, error):
    def no_devices():
        raise error

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", no_devices)
    with pytest.raises(UserError) as said, start.explained_devices():
        jax.devices()
    assert str(said.value).startswith("JAX finds no device for JAX_PLATFORMS=cuda")
    assert "JAX_PLATFORMS=cpu" in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, ValueError, UserError])
def test_other_errors_are_not_taken_for_it(kind):
    with pytest.raises(kind, match="^of its own$"), start.explained_devices():
        raise kind("of its own")


def test_training_on_a_card_that_is_not_there_leaves_no_trace(tmp_path):
    done = subprocess.run(
        command("--workdir", tmp_path / "new", "--config", experiment_file(tmp_path)),
        env=environment(JAX_PLATFORMS="cuda", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: JAX finds no device for JAX_PLATFORMS=cuda"
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_what_an_ascii_terminal_cannot_print_is_escaped(monkeypatch):
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(main, "run", lambda argv: print("猫 and Größe"))
    assert main.main() == 0
    sys.stdout.flush()
    assert written.getvalue() == b"\\u732b and Gr\\xf6\\xdfe\n"

    def refuse(argv):
        raise UserError("no label 猫")

    monkeypatch.setattr(main, "run", refuse)
    assert main.main() == 2
    sys.stderr.flush()
    assert written.getvalue().endswith(b"error: no label \\u732b\n")


def test_double_precision_is_left_aside_with_a_note(monkeypatch, capsys):
    with jax_settings(jax_enable_x64=True, jax_compilation_cache_dir="/chosen"):
        start.prepare()
        assert jnp.zeros(()).dtype == np.float32
        assert "JAX_ENABLE_X64 is left aside" in capsys.readouterr().err
        start.prepare()
        assert capsys.readouterr().err == ""


def test_a_step_leaves_its_state_in_single_precision_where_jax_has_double(x64):
    config = tiny_config()
    parts = build(config)
    state = jax.eval_shape(parts.init_state, noise.key(0))
    step = make_train_step(
        parts.objective, parts.apply_fn, parts.optimizer, parts.ema, parts.learning_rate
    )
    after, _ = jax.eval_shape(step, state, noise.key(1), batch_spec(config, parts, 16))
    for before, leaf in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert leaf.dtype == before.dtype
        assert leaf.dtype in (np.float32, np.int32)


def test_a_negative_number_may_be_a_word_of_its_own(tmp_path):
    from diffusion_jax.commands import train
    from diffusion_jax.runs import command_line

    words = ["--workdir", str(tmp_path), "--config", str(ROOT / "experiments" / "digits.py")]
    words += ["--config.sampling.label", "-1", "--config.training.learning_rate", "1e-3"]
    given = command_line.parse(words, train)
    assert given.config.sampling.label == -1
    assert given.config.training.learning_rate == 1e-3
    assert given.workdir == tmp_path
