"""What the host waits for while it trains, and what the clock counts."""

import gc
import pathlib

import jax
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
    """The metrics of a step; reading them, or waiting for them, is an event."""

    def __init__(self, step, value, events):
        self.step, self.value, self.events = step, value, events

    def __array__(self, dtype=None, copy=None):
        self.events.append(("read", self.step))
        return self.value

    def block_until_ready(self):
        self.events.append(("done", self.step))
        return self

    def is_ready(self):
        return False


NAMES = ("loss", "grad_norm", "learning_rate")
STEPS = {  # what happens after a step is begun and before the next one is
    1: {step: [("read", step - 1)] for step in range(2, 9)},
    4: {
        **{step: [("done", step - 2)] for step in (3, 4, 7, 8)},
        5: [("read", step) for step in (1, 2, 3, 4)],
    },
}


@pytest.mark.parametrize("log_every", STEPS)
def test_the_host_waits_for_the_step_before_last_and_what_is_logged(
    log_every, tmp_path, monkeypatch
):
    """Every array of the device that the host reads, by any way, goes through `ArrayImpl._value`,
    and every wait through block_until_ready: between the first and the last dispatch there must be
    neither, besides the metrics of steps that are over or logged. The next batch is on its way to
    the device before the host waits."""
    config = mlp_config(eval_every=0, checkpoint_every=8, log_every=log_every)
    run, state = train.begin(config, tmp_path / "run")
    events, place = [], run.batches.place

    def take_steps(state, key, batches):
        step = 1 + sum(what == "step" for what, _ in events)
        events.append(("step", step))
        one = np.ones(1, np.float32)
        return state.replace(step=step), {name: Counted(step, one, events) for name in NAMES}

    def placed(batches):
        events.append(("placed", 1 + sum(what == "placed" for what, _ in events)))
        return place(batches)

    array, value = type(state.step), type(state.step)._value
    monkeypatch.setattr(
        array, "_value", property(lambda a: events.append(("wait", a.shape)) or value.fget(a))
    )
    monkeypatch.setattr(array, "block_until_ready", lambda a: events.append(("wait", a.shape)) or a)
    run.batches.place = placed
    monkeypatch.setattr(
        train, "begin", lambda config, workdir: (run._replace(take_steps=take_steps), state)
    )
    monkeypatch.setattr(train, "draw_picture", lambda run, state: None)
    monkeypatch.setattr(train, "save", lambda run, state, wait: None)
    monkeypatch.setattr(train, "finish", lambda run, state, **options: None)
    train.train(run.config, tmp_path / "run")
    expected = [("placed", 1)]
    for step in range(1, 9):
        expected += [("step", step)] + [("placed", step + 1)] * (step < 8)
        expected += [one for one in STEPS[log_every].get(step, []) for _ in NAMES]
    start = events.index(("placed", 1))
    assert events[start : start + len(expected)] == expected
    rest = [("read", step) for step in range(8 if log_every == 1 else 5, 9) for _ in NAMES]
    assert events[start + len(expected) :] == rest


def test_hundreds_of_steps_compile_nothing_and_keep_nothing(tmp_path, monkeypatch):
    """After the first steps: no compilation, no array of the device more, and no more memory than
    the allocator's noise."""
    config = mlp_config(
        num_steps=400, eval_every=0, checkpoint_every=400, log_every=50, batch_size=4
    )
    run, state = train.begin(config, tmp_path / "run")
    compiled, counted, seen = [], [], []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    def take_steps(state, key, batches):
        counted.append(len(compiled))
        if len(counted) in (75, 375):  # at the same distance from a line of the log
            gc.collect()
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            seen.append((len(jax.live_arrays()), 4096 * pages))
        return run.take_steps(state, key, batches)

    monkeypatch.setattr(train, "draw_picture", lambda run, state: None)
    monkeypatch.setattr(train, "finish", lambda run, state, **options: None)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train.take_all_steps(run._replace(take_steps=take_steps), state)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # the first step is compiled, which the listener hears
    assert counted[0] == 0 < counted[1] == counted[399]
    (arrays, memory), (more_arrays, more_memory) = seen
    assert more_arrays == arrays
    assert more_memory - memory < 32e6  # 300 states would be 150 MB
