"""Files of weights in tests: that their tensors are the same, and what is said of a bad one."""

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name in expected:
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], expected[name], err_msg=name)


def refusal(function, *args, **kwargs):
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert "\n" not in message
    return message
