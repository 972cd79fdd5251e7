import errno
import os
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.training import checkpoint
from diffusion_jax.training.checkpoint import Checkpoints, seal
from diffusion_jax.training.state import init_state


def some_state(step):
    params = {"w": jax.random.normal(jax.random.key(step), (300, 40)), "b": jnp.arange(3.0)}
    state = init_state(params, optax.adam(1e-3))
    return state.replace(step=jnp.int32(step), ema_params=jax.tree.map(lambda a: a + 1, params))


@pytest.fixture
def saved(tmp_path):
    """A workdir with the checkpoints of steps 3 and 5."""
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 5):
        checkpoints.save(some_state(step), {"data": {"next_index": step}}, wait=True)
    checkpoints.close()
    return tmp_path


def steps(workdir):
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    )


def restored(workdir):
    return Checkpoints(workdir, read_only=True).restore(some_state(0))[0]


def test_the_newest_comes_back_bit_for_bit(saved):
    state, extra = Checkpoints(saved, read_only=True).restore(some_state(0))
    jax.tree.map(np.testing.assert_array_equal, state, some_state(5))
    assert jax.tree.structure(state) == jax.tree.structure(some_state(5))
    assert extra == {"data": {"next_index": 5}}


def test_averages_are_kept_where_there_are_some(tmp_path):
    """And a checkpoint without them is one of before they came."""
    plain, several = some_state(1), some_state(2)
    several = several.replace(averages=(several.params, several.ema_params))
    for name, state in (("plain", plain), ("several", several)):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(state, {}, wait=True)
        checkpoints.close()
        (described,) = (tmp_path / name).glob("checkpoints/*/state/_METADATA")
        assert ("averages" in described.read_text()) == (name == "several")
        back, _ = Checkpoints(tmp_path / name, read_only=True).restore(state)
        jax.tree.map(np.testing.assert_array_equal, back, state)


def test_only_the_newest_are_kept(saved):
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(some_state(8), {}, wait=True)
    checkpoints.close()
    assert steps(saved) == [5, 8]


def test_multiples_of_a_number_of_steps_are_kept_for_ever(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, every=4)
    for step in range(2, 15, 2):
        checkpoints.save(some_state(step), {})
    checkpoints.close()
    assert steps(tmp_path) == [4, 8, 12, 14]


def test_an_old_one_goes_only_when_the_new_one_is_complete(saved, monkeypatch):
    written, go_on = threading.Event(), threading.Event()

    def slow(folder):
        written.set()
        go_on.wait(60)
        seal(folder)

    monkeypatch.setattr(checkpoint, "seal", slow)
    checkpoints = Checkpoints(saved, keep=1)
    checkpoints.save(some_state(8), {})
    assert written.wait(60)
    time.sleep(0.2)
    assert steps(saved) == [3, 5]
    assert int(restored(saved).step) == 5
    go_on.set()
    checkpoints.close()
    assert steps(saved) == [8]


def test_a_failure_in_the_background_is_said_and_the_old_one_stays(saved, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(checkpoint, "seal", full)
    checkpoints = Checkpoints(saved, keep=1)
    checkpoints.save(some_state(8), {})
    with pytest.raises(
        UserError,
        match=r"step 8 cannot be written to .*: No space left on device; "
        "the last one is that of step 5",
    ):
        checkpoints.save(some_state(9), {})
    checkpoints.close()  # said once
    assert steps(saved) == [3, 5]
    monkeypatch.undo()
    checkpoints = Checkpoints(saved, keep=1)
    checkpoints.save(some_state(8), {})
    checkpoints.close()
    assert [path.name for path in (saved / "checkpoints").iterdir()] == ["8"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_flipped_bit_in_any_file_is_detected(saved, capsys):
    found = {path: path.read_bytes() for path in files(saved / "checkpoints" / "5")}
    assert len(found) > 5
    for path, data in found.items():
        flip(path)
        state = restored(saved)
        if path.parent.name == "5" and path.name in (
            "_CHECKPOINT_METADATA",
            "commit_success.txt",
        ):  # which nothing depends on
            jax.tree.map(np.testing.assert_array_equal, state, some_state(5))
        else:
            jax.tree.map(np.testing.assert_array_equal, state, some_state(3))
            said = capsys.readouterr().err
            assert "the checkpoint of step 5 is damaged (" in said and said.count("\n") == 1
            assert (
                path.name in said or path.name == "sha256.json"
            )  # in which the bit may be one of a name
        path.write_bytes(data)
    assert int(restored(saved).step) == 5


def cut_short(folder):
    largest = max(files(folder), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])


def lose_one(folder):
    next(path for path in files(folder / "state") if path.parent.name == "d").unlink()


def lose_all_but_the_checksums(folder):
    for path in files(folder):
        if path.name != "sha256.json":
            path.unlink()


def lose_all(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "harm",
    [cut_short, lose_one, lose_all_but_the_checksums, lose_all],
    ids=lambda harm: harm.__name__,
)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_damaged_one_is_set_aside_and_the_one_before_it_used(saved, harm, sealed):
    if not sealed:  # as before there were checksums
        for folder in (saved / "checkpoints").iterdir():
            (folder / "sha256.json").unlink()
    harm(saved / "checkpoints" / "5")
    harmed = files(saved / "checkpoints" / "5")
    assert (
        int(restored(saved).step) == 3 and files(saved / "checkpoints" / "5") == harmed
    )  # reading moves nothing

    checkpoints = Checkpoints(saved)
    state, extra = checkpoints.restore(some_state(0))
    jax.tree.map(np.testing.assert_array_equal, state, some_state(3))
    assert extra == {"data": {"next_index": 3}}
    (note,) = checkpoints.notes
    assert note.startswith("the checkpoint of step 5 is damaged (") and note.endswith(
        "damaged/5; that of step 3 is used"
    )
    assert len(files(saved / "damaged" / "5")) == len(harmed) and steps(saved) == [3]

    checkpoints.save(some_state(5), {}, wait=True)
    checkpoints.close()
    assert int(restored(saved).step) == 5
    harm(saved / "checkpoints" / "5")
    Checkpoints(saved).restore(some_state(0))
    assert sorted(path.name for path in (saved / "damaged").iterdir()) == ["5", "5.1"]


def test_where_none_is_whole_one_line_says_so(saved):
    cut_short(saved / "checkpoints" / "5")
    lose_one(saved / "checkpoints" / "3")
    said = r"no checkpoint in .* is whole \(step 5: .* bytes instead of .*; step 3: .* is missing\)"
    with pytest.raises(UserError, match=said) as error:
        Checkpoints(saved).restore(some_state(0))
    assert (
        "\n" not in str(error.value) and steps(saved) == [3, 5] and not (saved / "damaged").exists()
    )


def test_one_of_another_network_is_not_taken_for_damage(saved):
    other = some_state(0).replace(params={"w": jnp.zeros((2, 2))})
    with pytest.raises(UserError, match=r"checkpoints/5 is whole, but it cannot be read \("):
        Checkpoints(saved).restore(other)


def test_those_without_checksums_are_read(saved):
    (saved / "checkpoints" / "5" / "sha256.json").unlink()
    jax.tree.map(np.testing.assert_array_equal, restored(saved), some_state(5))


def test_no_clock_decides_what_is_newest(saved, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 1e6)
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(some_state(8), {}, wait=True)
    checkpoints.close()
    os.utime(saved / "checkpoints" / "8", (1e9, 1e9))
    assert steps(saved) == [5, 8]
    assert int(restored(saved).step) == 8


def test_without_a_checkpoint_there_is_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint; train first"):
        Checkpoints(tmp_path, read_only=True)
