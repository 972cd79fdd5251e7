"""Drawing until a deadline, and first results on the way, with a clock that the test turns."""

import itertools

import jax
import numpy as np
import pytest
from one_line import INDEX, PARAMS, run_of

from diffusion_jax.core import schedules
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Level
from diffusion_jax.runs import deadline
from diffusion_jax.runs.build import make_grid
from diffusion_jax.runs.config import use
from diffusion_jax.runs.deadline import (
    check_deadline,
    chosen_again,
    draw_all,
    make_draw_until,
    make_levels,
    supported,
)
from diffusion_jax.runs.draw import make_generate


class Clock:
    """A clock that a network's steps turn: a piece of n steps takes n times `step`, a look
    `look`. slower: from that many steps on a step takes `times` as long."""

    def __init__(self, monkeypatch, step=1.0, look=1.0, slower=10**9, times=1.0):
        self.now, self.taken, self.counting = 0.0, 0, False
        whole = deadline.map_pieces

        def map_pieces(function):
            run = whole(function)

            def timed(given, shared):
                if function.__name__ == "advance":
                    count = given[3] - given[2]
                    late = sum(self.counting and self.taken + i >= slower for i in range(count))
                    self.now += step * (count - late + times * late)
                    self.taken += count * self.counting
                if function.__name__ == "look":
                    self.now += look
                return run(given, shared)

            return timed

        monkeypatch.setattr(deadline, "map_pieces", map_pieces)

    def __call__(self):
        return self.now


def prepared(monkeypatch, clock=None, **sampling):
    """(draw_until, its clock, config, parts), compiled for the samples number INDEX."""
    sampling = {"sampler": "dpmpp_2m", "grid": "logsnr", "steps": "6"} | sampling
    config, parts = run_of(**sampling)
    config.diffusion.schedule.num_steps = 200
    parts = parts._replace(problem=parts.problem._replace(schedule=schedules.cosine(200)))
    parts = parts._replace(grid=make_grid(config, parts.schedule))
    clock = Clock(monkeypatch, **(clock or {}))
    draw_until = make_draw_until(config, parts, decoded=False, clock=clock)
    first = draw_until(PARAMS, INDEX)
    assert first.compiling > 0 and first.steps == 6
    clock.counting = True
    return draw_until, clock, config, parts


def of_steps(config, parts, steps):
    """What `make_generate` draws with so many steps."""
    parts = parts._replace(grid=make_grid(config, parts.schedule, str(steps)))
    return make_generate(config, parts)(PARAMS, INDEX)


def test_without_a_deadline_it_draws_the_runs_grid_in_pieces(monkeypatch):
    draw_until, _, config, parts = prepared(monkeypatch, sampler="ancestral")
    seen = []
    drawn = draw_until(PARAMS, INDEX, early=2, on_step=lambda k, data: seen.append((k, data)))
    np.testing.assert_allclose(drawn.data, of_steps(config, parts, 6), atol=1e-6)
    assert [k for k, _ in seen] == [2, 3]  # of five steps, a third and two thirds
    chain = make_generate(config, parts, trajectory=True)
    _, path = chain(PARAMS, INDEX)
    for k, data in seen:  # the x0 predicted there, by blocks that its noise allows
        block = 8 // data.shape[1]
        means = path.x0[:, k].reshape(4, 8 // block, block, 8 // block, block, 1).mean((2, 4))
        np.testing.assert_allclose(data, means, atol=1e-5)
    assert seen[0][1].shape[1] <= seen[1][1].shape[1]


def test_the_steps_fill_the_time_and_nothing_is_compiled_anew(monkeypatch):
    """A step and the last hop take a second each: in n seconds there are n levels."""
    draw_until, clock, config, parts = prepared(monkeypatch)
    for seconds in (5, 12, 40):
        before = clock.now
        drawn = draw_until(PARAMS, INDEX, seconds)
        assert drawn.steps == drawn.seconds == clock.now - before == seconds
        assert drawn.compiling == 0
        np.testing.assert_allclose(drawn.data, of_steps(config, parts, seconds), atol=1e-5)
    assert draw_until(PARAMS, INDEX, 0.1).steps == 2  # the least
    assert draw_until(PARAMS, INDEX, 10_000).steps == 200  # a table's all
    seeds = draw_until(PARAMS, INDEX, 12, seed=5).data
    assert abs(seeds - draw_until(PARAMS, INDEX, 12).data).max() > 0.01


def test_looks_on_the_way_are_in_the_time(monkeypatch):
    draw_until, *_ = prepared(monkeypatch)
    seen = []
    drawn = draw_until(PARAMS, INDEX, 20, early=3, on_step=lambda k, data: seen.append(k))
    assert drawn.seconds == 20 and drawn.steps == 17 and seen == [4, 8, 12]


def test_slower_steps_on_the_way_make_the_rest_of_the_grid_coarser(monkeypatch):
    """From the tenth step on a step takes three seconds, which is known after the piece of seven:
    of 30 seconds and a last hop."""
    draw_until, *_ = prepared(monkeypatch, {"slower": 10, "times": 3.0})
    drawn = draw_until(PARAMS, INDEX, 30)
    assert 14 <= drawn.steps <= 18
    assert 30 * 0.85 <= drawn.seconds <= 30 * 1.15


def test_faster_steps_on_the_way_make_it_finer(monkeypatch):
    draw_until, *_ = prepared(monkeypatch, {"slower": 10, "times": 0.25})
    drawn = draw_until(PARAMS, INDEX, 30)
    assert drawn.steps > 50
    assert 30 * 0.85 <= drawn.seconds <= 30 * 1.15


@pytest.mark.parametrize("grid", ["logsnr", "karras", "uniform", "quadratic", "trailing"])
def test_grids_of_any_length_are_the_runs(grid):
    config, parts = run_of(grid=grid)
    for quantize in (False, True):
        config.sampling.quantize = quantize
        levels = make_levels(config, parts)
        for steps in (2, 7, 20):
            own = make_grid(config, parts.schedule, str(steps))
            for a, b in zip(levels(steps), own, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_rest_chosen_again_goes_from_where_the_chain_is_to_the_cleanest_level():
    config, parts = run_of(grid="uniform")
    levels = make_levels(config, parts)
    grid = levels(11)
    for done, count in itertools.product((0, 3, 9), (1, 2, 5, 30)):
        found = chosen_again(levels, grid, done, count, 20)
        np.testing.assert_array_equal(found.t[: done + 1], grid.t[: done + 1])
        assert np.all(np.diff(found.t) < 0) and found.t[-1] == grid.t[-1] == 0
        assert 1 <= len(found.t) - 1 - done <= count
        np.testing.assert_array_equal(found.alpha, parts.schedule.level(found.t).alpha)
    assert len(chosen_again(levels, grid, 3, 3, 20).t) == 7


def test_batches_share_the_time_that_is_left(monkeypatch):
    draw_until, _, config, parts = prepared(monkeypatch)
    drawn = draw_all(draw_until, PARAMS, 10, 4, seconds=36)
    assert drawn.data.shape == (10, 8, 8, 1) and drawn.seconds == 36 and drawn.steps == 12
    parts = parts._replace(grid=make_grid(config, parts.schedule, "12"))
    own = make_generate(config, parts)(PARAMS, np.arange(10))
    np.testing.assert_allclose(drawn.data, own, atol=1e-5)


def test_the_resolution_that_a_level_supports():
    """The mean of b x b pixels has a b-th of the noise's deviation."""
    of = lambda ratio, shape: supported(Level(0.0, 0.5, 0.5 * ratio), shape)
    image = (16, 32, 3)
    assert [of(r, image) for r in (0.1, 1.0, 1.01, 2.0, 3.9, 4.1, 100)] == [1, 1, 2, 2, 4, 8, 8]
    assert of(100, (6, 16, 1)) == 2 and of(100, (7, 16, 1)) == 1
    assert of(100, (16,)) == 1
    assert supported(Level(1.0, 0.0, 1.0), image) == 8


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tolerance": 0.1}, "so does config.sampling.tolerance"),
        ({"grid": "explicit", "steps": "9,5,0"}, "so does an explicit grid"),
        ({"sampler": use("edm_churn", churn=4.0)}, "give config.sampling.sampler.gamma"),
    ],
)
def test_settings_that_fix_the_number_of_steps_are_refused(settings, said):
    config, parts = run_of(**settings)
    with pytest.raises(UserError, match=said):
        make_draw_until(config, parts)(PARAMS, INDEX, 1.0)
    check_deadline(config, early=True)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    config, parts = run_of()
    with pytest.raises(UserError, match="start one alone"):
        make_draw_until(config, parts)
