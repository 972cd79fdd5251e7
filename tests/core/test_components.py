"""Equal calls of a factory give one object, known by its call."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import predictions, schedules
from diffusion_jax.core.components import component
from diffusion_jax.core.types import Schedule


@component
def line(slope: float = 1.0, count: int = 2, name: str | None = None):
    """slope t."""
    return lambda t: slope * t


def test_equal_arguments_give_one_object_however_they_are_written():
    assert schedules.cosine(1000) is schedules.cosine(num_steps=1000) is schedules.cosine()
    assert schedules.cosine(1000) != schedules.cosine(999)
    assert hash(schedules.cosine(1000)) == hash(schedules.cosine(np.int64(1000)))
    assert line(2) is line(2.0) is line(np.float64(2.0))
    assert line() is not line(name="a")
    assert predictions.mean(schedules.cosine(50)) is predictions.mean(schedules.cosine(50))


def test_the_repr_reads_as_the_call():
    assert repr(schedules.cosine(50)) == "cosine(num_steps=50, s=0.008)"
    assert (
        repr(predictions.mean(schedules.cosine(50)))
        == "mean(schedule=cosine(num_steps=50, s=0.008))"
    )
    assert repr(line(2, name="a")) == "line(slope=2.0, count=2, name='a')"


def test_results_are_what_they_were():
    schedule = schedules.cosine(50)
    assert isinstance(schedule, Schedule) and schedule.num_steps == 50
    level, *_ = schedule
    assert level is schedule.level
    assert line(3.0)(2.0) == 6.0


def test_a_replaced_one_is_no_longer_the_call():
    schedule = schedules.cosine(50)
    other = schedule._replace(num_steps=3)
    assert type(other) is Schedule and other.num_steps == 3 and other != schedule
    assert "cosine(num_steps=50" not in repr(other)
    assert type(jax.tree.map(lambda a: a, schedule)).__name__ == "Schedule"
    assert "cosine(num_steps=50" not in repr(jax.tree.map(lambda a: a, schedule))


def test_arguments_that_cannot_be_hashed_make_a_new_object():
    betas = np.linspace(0.1, 0.2, 5)
    first, second = schedules.from_betas(betas), schedules.from_betas(betas)
    assert first is not second and first != second
    assert repr(first) == "from_betas(betas=float64[5])"
    assert hash(first) != hash(second)


def test_the_signature_and_the_docstring_stay():
    assert list(inspect.signature(schedules.cosine).parameters) == ["num_steps", "s"]
    assert inspect.signature(schedules.cosine).parameters["s"].annotation is float
    assert "Nichol" not in (line.__doc__ or "") and line.__doc__ == "slope t."
    with pytest.raises(TypeError, match="unexpected"):
        schedules.cosine(steps=3)  # pyright: ignore[reportCallIssue]


def test_a_factory_first_called_within_a_jit_leaks_no_tracer():
    @component
    def shifted(by: float = 1.0):
        held = jnp.asarray(by) + 1.0
        return lambda a: a + held

    assert jax.jit(lambda a: shifted()(a))(1.0) == 3.0
    assert shifted()(1.0) == 3.0
    assert jax.jit(lambda a, b: shifted(b)(a))(1.0, 2.0) == 4.0  # an argument that is traced


def test_what_holds_arrays_is_made_for_each_precision(x64):
    @component
    def held(value: float = 0.1):
        array = jnp.asarray(value)
        return lambda: array

    with jax.enable_x64(False):
        assert held()().dtype == jnp.float32
    assert held()().dtype == jnp.float64


def test_one_made_of_another_has_its_own_call():
    @component
    def steep(slope: float = 9.0):
        return line(slope)

    @component
    def short(num_steps: int = 7):
        return schedules.cosine(num_steps)

    assert repr(steep()) == "steep(slope=9.0)" and repr(line(9.0)).startswith("line(slope=9.0")
    assert repr(short()) == "short(num_steps=7)" and isinstance(short(), Schedule)
    assert type(short()._replace(num_steps=1)) is Schedule
    assert repr(schedules.cosine(7)) == "cosine(num_steps=7, s=0.008)"


def test_partials_are_functions_and_other_objects_stay():
    assert repr(component(lambda: functools.partial(max, 3))()) == "<lambda>()"
    assert component(lambda: 5)() == 5
