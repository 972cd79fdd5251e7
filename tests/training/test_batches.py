"""Batches that are placed ahead, and the state that a checkpoint keeps of their source."""

import numpy as np
import pytest

from diffusion_jax.data.pipeline import training_batches
from diffusion_jax.training.batches import Ahead

SOURCE = [{"image": np.full((2, 2, 1), i, np.uint8)} for i in range(20)]


def numbers(batches):
    return [int(image[0, 0, 0]) for image in batches["image"].reshape(-1, 2, 2, 1)]


def test_batches_are_the_sources_stacked_and_placed():
    plain, placed = training_batches(SOURCE, 4, seed=0), []
    ahead = Ahead(training_batches(SOURCE, 4, seed=0), lambda b: placed.append(b) or b, 2)
    for call in range(3):
        ahead.prepare()
        ahead.prepare()  # does nothing: they are ready
        assert len(placed) == call + 1
        taken = ahead.take()
        assert taken["image"].shape == (2, 4, 2, 2, 1)
        assert numbers(taken) == sum((numbers(next(plain)) for _ in range(2)), [])


def test_a_state_is_that_after_the_batches_taken_whatever_is_ready():
    ahead = Ahead(training_batches(SOURCE, 4, seed=1), lambda b: b)
    for prepared in (False, True):
        ahead.take()
        if prepared:
            ahead.prepare()
        other = training_batches(SOURCE, 4, seed=1)
        other.set_state(ahead.get_state())
        assert numbers(next(other)) == numbers(ahead.take())


def test_what_fails_is_raised_when_it_is_taken_and_the_state_is_that_before():
    source = training_batches(SOURCE, 4, seed=1)
    fails = []

    def place(batches):
        if fails:
            raise OSError("the disk is gone")
        return batches

    ahead = Ahead(source, place)
    ahead.take()
    before = ahead.get_state()
    fails.append(True)
    ahead.prepare()
    assert ahead.get_state() == before
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            ahead.take()
