"""What the host reads of metrics, and when."""

import numpy as np
import pytest

from diffusion_jax.training import unread
from diffusion_jax.training.unread import NotFinite, Unread


def metrics(loss, grad_norm=1.0, steps=1):
    every = lambda value: np.broadcast_to(np.float32(value), steps)
    return {"loss": every(loss), "grad_norm": every(grad_norm)}


def test_metrics_are_due_where_a_step_is_logged_and_read_once():
    waiting, due = Unread(3), []
    for step in range(1, 8):
        waiting.add(step, metrics(float(step)))
        due.append(waiting.due)
        if waiting.due:
            assert waiting.read() == {"loss": step, "grad_norm": 1.0}
            assert not waiting.due
    assert due == [False, False, True, False, False, True, False]
    assert waiting.read() == {}  # step 7 is not logged


def test_no_more_than_so_many_steps_are_kept():
    waiting = Unread(10**9)
    for step in range(1, unread.MOST):
        waiting.add(step, metrics(1.0))
        assert not waiting.due
    waiting.add(unread.MOST, metrics(1.0))
    assert waiting.due and waiting.read() == {}


@pytest.mark.parametrize(
    ("spoilt", "line"),
    [
        ({5: metrics(np.nan)}, "step 5: loss is nan"),
        ({4: metrics(1.0, np.inf), 5: metrics(np.nan)}, "step 4: grad_norm is inf"),
        ({3: metrics(-np.inf, np.nan)}, "step 3: loss is -inf"),
    ],
)
def test_the_first_step_that_is_not_finite_is_named(spoilt, line):
    waiting = Unread(6)
    for step in range(1, 7):
        waiting.add(step, spoilt.get(step, metrics(1.0)))
    with pytest.raises(NotFinite, match=line):
        waiting.read()


def test_a_step_within_a_call_of_several_is_named():
    waiting = Unread(6)
    waiting.add(3, metrics(1.0, steps=3))
    waiting.add(6, metrics([1.0, np.nan, 2.0], steps=3))
    with pytest.raises(NotFinite, match="step 5: loss is nan"):
        waiting.read()
