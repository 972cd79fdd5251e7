"""The processes of a run, which end together."""

import signal
import time

import pytest
import tiny
from several import processes
from tiny import command, experiment_file

from diffusion_jax.core.errors import UserError


def test_sigterm_to_one_of_two_processes_saves_and_ends_both(tmp_path):
    arguments = command(
        "--workdir",
        tmp_path / "run",
        "--config",
        experiment_file(tmp_path, "mlp_config"),
        "--config.training.num_steps=100000",
    )
    started = processes(
        [[*arguments, "--config.training.eval_every=0", "--config.training.checkpoint_every=50000"]]
        * 2,
        1,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 2, started)
    started[1].send_signal(signal.SIGTERM)
    for process in started:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 128 + signal.SIGTERM, errors[-3000:]
    (saved,) = [
        int(path.name)
        for path in (tmp_path / "run" / "checkpoints").iterdir()
        if path.name.isdigit()
    ]
    assert f"stopped and saved at step {saved};" in (tmp_path / "run" / "log.txt").read_text()


def wait_until(condition, started):
    for _ in range(3000):
        if condition():
            return
        assert all(process.poll() is None for process in started), started[0].communicate()[1][
            -3000:
        ]
        time.sleep(0.1)
    raise AssertionError("five minutes were not enough")


def test_what_one_process_fails_of_ends_all_with_its_message(tmp_path):
    file = experiment_file(tmp_path, "mlp_config")
    arguments = command("--workdir", tmp_path / "run", "--config", file)
    fails = ["--config.data.source=arrays", "--config.data.source.folder=no/such.npz"]
    for process in processes([arguments, [*arguments, *fails]], 1):
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 2, errors[-3000:]
        assert "error: process 1: config.data.source.folder=no/such.npz holds no arrays" in errors


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"JAX_NUM_PROCESSES": "2"},
            "needs JAX_NUM_PROCESSES and JAX_PROCESS_ID, whole numbers, beside it",
        ),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "JAX_PROCESS_ID=2 must be below JAX_NUM_PROCESSES=2",
        ),
    ],
)
def test_processes_that_are_named_wrongly(tmp_path, monkeypatch, variables, message):
    for name, value in {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        tiny.main_run("--workdir", tmp_path / "run", "--config", experiment_file(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
