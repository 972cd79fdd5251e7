"""Profiles: the steps that were asked for, and no others."""

import contextlib

import jax
import pytest
from tiny import tiny_config

from diffusion_jax.core.errors import UserError
from diffusion_jax.runs.checks import check_together
from diffusion_jax.training.profiling import Profile


@pytest.mark.parametrize(
    ("text", "start", "steps_per_call", "traced"),
    [
        ("3:4", 0, 1, [3, 4]),
        ("3:3", 0, 1, [3]),
        ("3:6", 4, 1, [5, 6]),  # resumed between the two
        ("3:4", 4, 1, []),
        ("3:4", 8, 1, []),
        ("3:5", 0, 2, [3, 5]),  # the calls of steps 3, 4 and 5, 6
        ("2:3", 0, 2, [1, 3]),
        ("7:20", 0, 1, [7, 8]),  # the run ends between the two
        ("9:20", 0, 1, []),
        ("", 0, 1, []),
    ],
)
def test_the_profiled_steps_are_those_that_were_asked_for(
    tmp_path, monkeypatch, text, start, steps_per_call, traced
):
    events = []
    monkeypatch.setattr(
        jax.profiler, "start_trace", lambda folder, **options: events.append("start")
    )
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    monkeypatch.setattr(
        jax.profiler,
        "StepTraceAnnotation",
        lambda name, step_num: events.append(step_num) or contextlib.nullcontext(),
    )
    profile = Profile(text, tmp_path)
    for step in range(start, 8, steps_per_call):
        with profile.begin(step, steps_per_call):
            pass
        profile.end(step + steps_per_call, jax.numpy.zeros(()))
    profile.close()
    assert events == (["start", *traced, "stop"] if traced else [])


@pytest.mark.parametrize("text", ["10", "5:4", "0:3", "a:b", "1:2:3", "-1:3", ":", "3 : 4"])
def test_profile_steps_that_cannot_be_read(text):
    with pytest.raises(
        UserError, match=r"must be the first and the last step, as in \"10:15\", not"
    ):
        check_together(tiny_config(profile_steps=text))
