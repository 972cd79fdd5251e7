"""What the host waits for while it trains, and what the clock counts."""

import numpy as np
import pytest
from tiny import mlp_config

from diffusion_jax.commands import train
from diffusion_jax.training.logging import read_metrics


@pytest.mark.parametrize("waits", [True, False])
def test_images_a_second_are_those_of_the_steps_alone(tmp_path, monkeypatch, waits):
    """By a clock of its own: a step takes 2 s, the first 60 s more, a held-out loss 100 s. The host
    takes part or does not."""
    config = mlp_config(eval_every=4, checkpoint_every=8, log_every=2)
    run, state = train.begin(config, tmp_path / "run")
    now, ready = [0.0], [0.0]  # of the host; when the device will have done what it has to

    class Result:
        def __init__(self):
            self.at = ready[0]

        def is_ready(self):
            return now[0] >= self.at

        def __array__(self, dtype=None, copy=None):
            now[0] = max(now[0], self.at)
            return np.ones(1, np.float32)

    def take_steps(state, key, batches):
        step = state.step + 1
        now[0] += 60.0 * (step == 1)
        ready[0] = max(now[0], ready[0]) + 2.0
        now[0] = ready[0] if waits else now[0]
        return state.replace(step=step), {
            name: Result() for name in ("loss", "grad_norm", "learning_rate")
        }

    def evaluate(run, state):
        now[0] += 100.0

    monkeypatch.setattr("diffusion_jax.training.logging.time.perf_counter", lambda: now[0])
    for name in ("draw_picture", "finish"):
        monkeypatch.setattr(train, name, lambda run, state, **options: None)
    monkeypatch.setattr(train, "save", lambda run, state, wait: None)
    monkeypatch.setattr(train, "evaluate", evaluate)
    train.take_all_steps(run._replace(take_steps=take_steps), state.replace(step=0))
    speeds = {line["step"]: line["images_per_second"] for line in read_metrics(tmp_path / "run")}
    assert speeds.keys() == {2, 4, 6, 8}
    assert set(speeds.values()) == {config.training.batch_size / 2.0}


class Counted:
    """The metrics of a step, whose reading is an event, as a device's arrays would make the host
    wait."""

    def __init__(self, step, value, events):
        self.step, self.value, self.events = step, value, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(("read", self.step))
        return self.value

    def is_ready(self):
        return False


def test_the_host_waits_for_nothing_but_the_metrics_of_the_step_before(tmp_path, monkeypatch):
    """Every array of the device that the host reads, by any way, goes through `ArrayImpl._value`,
    and every wait through block_until_ready: between the first and the last dispatch there must be
    neither, besides the metrics of the step before."""
    run, state = train.begin(mlp_config(eval_every=0, checkpoint_every=8), tmp_path / "run")
    events, names = (
        [],
        {name: np.ones(1, np.float32) for name in ("loss", "grad_norm", "learning_rate")},
    )

    def take_steps(state, key, batches):
        step = 1 + sum(what == "step" for what, _ in events)
        events.append(("step", step))
        return state.replace(step=step), {
            name: Counted(step, value, events) for name, value in names.items()
        }

    array, value = type(state.step), type(state.step)._value
    monkeypatch.setattr(
        array, "_value", property(lambda a: events.append(("wait", a.shape)) or value.fget(a))
    )
    monkeypatch.setattr(array, "block_until_ready", lambda a: events.append(("wait", a.shape)) or a)
    monkeypatch.setattr(
        train, "begin", lambda config, workdir: (run._replace(take_steps=take_steps), state)
    )
    monkeypatch.setattr(train, "draw_picture", lambda run, state: None)
    monkeypatch.setattr(train, "save", lambda run, state, wait: None)
    monkeypatch.setattr(train, "finish", lambda run, state, **options: None)
    train.train(run.config, tmp_path / "run")
    expected = [("step", 1)]
    for step in range(2, 9):
        expected += [("step", step)] + [("read", step - 1)] * len(names)
    start = events.index(("step", 1))
    assert events[start : start + len(expected)] == expected
    assert events[start + len(expected) :] == [("read", 8)] * len(names)
